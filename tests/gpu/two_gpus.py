"""Looks rows up in two processes, one for each GPU or both on one: run by test_shards.py.

    python two_gpus.py peer|exchange GPUS MEET BUNDLE VOCAB

Over two GPUs messages go by NCCL. On one they go by gloo, which no CUDA graph can hold, and each
process reads the memory of the other as it would that of another GPU.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engram_cli.runtime.sharding.group import ShardGroup

sys.path.insert(0, str(Path(__file__).parents[1]))


def process(rank: int, way: str, gpus: int, meet: str, bundle: str, vocab: int) -> None:
    """Look rows of every dtype up, eagerly and in a graph, with other ids in each process."""
    from shard_cases import KINDS

    from engram_cli.runtime.sharding import group as groups

    if gpus == 1:
        groups._apart = lambda home, uuids: ""  # though it is the same GPU
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    device = torch.device("cuda", rank % gpus)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus > 1 else "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=2,
        device_id=device if gpus > 1 else None,
    )
    group = groups.find_group(None, [device])
    if way == "exchange":
        group = replace(group, reads_peers=False, reason="told so")
    for dtype in KINDS:
        look_up(dtype, rank, group, has_graphs=way == "peer" or gpus > 1)
    if way == "peer":
        hot_and_host(rank, group)
    else:
        groups._apart = lambda home, uuids: "told so"
    a_model(way, rank, device, bundle, vocab)
    dist.destroy_process_group()


def look_up(dtype: str, rank: int, group: ShardGroup, *, has_graphs: bool) -> None:
    """Compare vectors of new ids with those of the whole tables."""
    from lookup_cases import same_bits
    from shard_cases import distribute, whole

    from engram_cli.runtime import lookup_reference, ops

    device, peer = group.devices[0], group.reads_peers
    spec, hashed, tables = whole(dtype, device)
    share = 0.2 if peer else 0.0
    made = distribute(spec, tables, group, [device], dtype=torch.bfloat16, share=share)
    assert bool(made.memory.every) == peer, made.group.reason
    torch.cuda.synchronize()
    dist.barrier()
    generator = torch.Generator(device=device).manual_seed(rank)
    ids = torch.randint(0, 30, (2, 9 + rank), device=device, generator=generator)
    found = ops.look_up_shards(hashed, ids, made)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, dtype=made.dtype))
    if not peer:
        bounded_messages(made, lookup_reference.find_rows(hashed, ids)[1])
    held = ids[:, :4].clone()
    for _ in range(2):
        out = ops.look_up_shards(hashed, held, made)
    if has_graphs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = ops.look_up_shards(hashed, held, made)
    for _ in range(3):
        held.random_(0, 30)
        if has_graphs:
            graph.replay()
        else:
            out = ops.look_up_shards(hashed, held, made)
        expected = lookup_reference.look_up(hashed, held, tables, dtype=made.dtype)
        assert same_bits(out, expected), dtype
    torch.cuda.synchronize()
    dist.barrier()
    if has_graphs:
        del graph
    for _ in spec.layers:
        made.close()
    print(rank, dtype, made.kind, "one launch" if peer else "exchange", flush=True)


def bounded_messages(made: Any, rows: torch.Tensor) -> None:
    """Compare messages of a size known beforehand with those that are counted first."""
    from engram_cli.runtime.sharding.exchange import exchange_rows
    from engram_cli.runtime.sharding.owners import index_at_owner, owner_of

    flat = rows.reshape(-1)
    owners = owner_of(flat, 2)
    firsts = torch.tensor([made.blocks.first(rank, 1) for rank in range(2)], device=flat.device)
    index = index_at_owner(flat, 2) + firsts[owners]
    parts = made.blocks.parts(made.memory.own[0])
    most = 20 * rows.shape[-1]  # those of the process that asks for more
    counted, bounded = (
        exchange_rows(owners, index, parts, made.group.processes, at_most)
        for at_most in (None, most)
    )
    assert all(map(torch.equal, counted, bounded))


def a_model(way: str, rank: int, device: torch.device, bundle: str, vocab: int) -> None:
    """Compare logits and tokens of a model whose rows both processes have with those of HBM."""
    from tiny_models import llama, wake

    from engram_cli.runtime import attach, detach

    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(3, vocab, (2, 30 + rank), generator=generator).to(device)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    placements = ["hbm", "shard"]
    if way == "peer":
        placements += ["shard=2,replicate=20KB", "hbm=12KB,shard=2,host"]
    found = []
    for placement in placements:
        model: Any = llama(vocab).to(device)
        memory = attach(model, bundle, placement=placement)
        wake(memory)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
            found.append((logits, model.generate(input_ids=ids, **options)))
        assert (memory.counters.peer > 0) == (placement != "hbm")
        assert (memory.counters.host > 0) == placement.endswith("host")
        assert ("by exchange" in "".join(memory.notes)) == (placement != "hbm" and way != "peer")
        print(rank, *memory.notes, memory.counters, sep="; ", flush=True)
        dist.barrier()
        detach(model)
    for own in found[1:]:
        assert all(map(torch.equal, found[0], own))


def hot_and_host(rank: int, group: ShardGroup) -> None:
    """Look rows up whose hot ones are on both GPUs, and the others on the host."""
    from lookup_cases import same_bits
    from tier_cases import a_store, expected, hot_rows, random_records, some_rows, tier_spec

    from engram_cli.runtime.sharding.group import wait_for_all
    from engram_cli.runtime.sharding.hot import HotMemory

    device, spec = group.devices[0], tier_spec("fp8_e8m0", 256)
    records, hot = random_records(spec, 900), hot_rows(900)
    memory = HotMemory(group, {0: len(hot)}, records.shape[1])
    own = records[torch.from_numpy(hot[rank::2])]
    memory.own(0, rank)[: len(own)].copy_(own)
    wait_for_all(memory.group)
    peers = memory.of(0, device)
    store = a_store(spec, records, device, hot_rows=hot, peers=peers, dtype=torch.bfloat16)
    rows = some_rows(900, 2, 300, 24, seed=rank)
    for path in ("in-place", "staged"):
        store.path = path
        found = store(rows.to(device)).cpu()
        assert same_bits(found, expected(spec, records, rows, torch.bfloat16)), path
    asked = int(store.tier_buffers.counted[:, 1].sum())
    assert 0 < int(peers.here) < asked
    print(rank, "hot rows on both GPUs, others on the host:", asked, int(peers.here), flush=True)
    dist.barrier()
    store.close()


if __name__ == "__main__":
    given = (sys.argv[1], int(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5]))
    torch.multiprocessing.spawn(process, given, nprocs=2)

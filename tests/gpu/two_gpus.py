"""Looks rows up in two processes, one for each GPU: run by test_shards.py as a program.

python two_gpus.py peer|exchange MEET
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from engram_cli.runtime.sharding.group import ShardGroup

sys.path.insert(0, str(Path(__file__).parents[1]))


def process(rank: int, way: str, meet: str) -> None:
    """Look rows of every dtype up, eagerly and in a graph, with other ids on each GPU."""
    from lookup_cases import same_bits
    from shard_cases import KINDS, distribute, whole

    from engram_cli.runtime import lookup_reference, ops
    from engram_cli.runtime.sharding.group import find_group

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=2,
        device_id=device,
    )
    group = find_group(None, [device])
    if way == "exchange":
        group = replace(group, reads_peers=False, reason="told so")
    for dtype in KINDS:
        spec, hashed, tables = whole(dtype, device)
        share = 0.2 if way == "peer" else 0.0
        made = distribute(spec, tables, group, [device], dtype=torch.bfloat16, share=share)
        assert bool(made.memory.every) == (way == "peer"), made.group.reason
        torch.cuda.synchronize()
        dist.barrier()
        generator = torch.Generator(device=device).manual_seed(rank)
        ids = torch.randint(0, 30, (2, 9 + rank), device=device, generator=generator)
        found = ops.look_up_shards(hashed, ids, made)
        assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, dtype=made.dtype))
        held = ids[:, :4].clone()
        for _ in range(2):
            ops.look_up_shards(hashed, held, made)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = ops.look_up_shards(hashed, held, made)
        for _ in range(3):
            held.random_(0, 30)
            graph.replay()
            expected = lookup_reference.look_up(hashed, held, tables, dtype=made.dtype)
            assert same_bits(out, expected), dtype
        torch.cuda.synchronize()
        dist.barrier()
        del graph
        for _ in spec.layers:
            made.close()
        print(rank, dtype, made.kind, "one launch" if way == "peer" else "exchange", flush=True)
    if way == "peer":
        hot_and_host(rank, group)
    dist.destroy_process_group()


def hot_and_host(rank: int, group: ShardGroup) -> None:
    """Look rows up whose hot ones are on both GPUs, and the others on the host."""
    from lookup_cases import same_bits
    from tier_cases import a_store, expected, hot_rows, random_records, some_rows, tier_spec

    from engram_cli.runtime.sharding.group import wait_for_all
    from engram_cli.runtime.sharding.hot import HotMemory

    device, spec = torch.device("cuda", rank), tier_spec("fp8_e8m0", 256)
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
    torch.multiprocessing.spawn(process, (sys.argv[1], sys.argv[2]), nprocs=2)

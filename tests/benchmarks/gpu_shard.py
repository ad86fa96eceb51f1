"""Rows distributed over two GPUs: loads over NVLink, compared with NCCL, one GPU and the host.

    ENGRAM_PEERS=FOLDER python tests/benchmarks/gpu_shard.py [RESULT.json] [--tiny] [--sweep]
    ENGRAM_PEERS=FOLDER python tests/benchmarks/gpu_shard.py --full

One process for each GPU; both look up at once. DeepSeek-V4.1's first layer at full size (101 GB),
filled on the devices with a pattern that a counter gives. ENGRAM_PEERS gives the vocabulary map
only (gpu_peers.py). `--sweep` times other block sizes of the kernel. `--full` allocates both layers
(203 GB) and compares what is looked up with the plain version, without timing. `--tiny` passes
through all of it on the CPU, in two processes of gloo, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import gpu_world as world
import torch
import torch.distributed as dist
from runner import RESULTS, commit, machine, versions
from shard_world import RANKS, TINY, Rank, Run
from torch import Tensor

from engram_cli.runtime import ops, torch_ops
from engram_cli.runtime.kernels.lookup_launcher import Plan
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.sharding import registry
from engram_cli.runtime.sharding.rows import ShardedTables
from engram_cli.runtime.tables import Table
from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.host import HostRows, host_memory

LOCAL = "all rows local"
PEER, AT_OWNER = "peer loads, one launch", "peer loads, scales at the owner"
BOUNDED, COUNTED, HOST = "NCCL, bounded messages", "NCCL, counts first", "rows on the host"
# tokens and columns of a program, not kept in L1, warps, values a thread loads at once
PLANS = {
    1: [(1, 1), (1, 2), (1, 4), (1, 8), (1, 1, False, 1, 16)],
    64: [(1, 1), (1, 2), (1, 4), (1, 8), (1, 1, True)],
    512: [(1, 1), (1, 2), (1, 4), (1, 8), (1, 4, True)],
    4096: [(1, 2), (1, 4), (1, 8), (1, 8, True), (1, 4, True), (1, 8, True, 1, 16)],
    16384: [
        *[(1, 4), (1, 8), (1, 8, True), (1, 8, False, 1, 16), (1, 8, True, 1, 16)],
        *[(2, 8), (2, 8, True, 2), (4, 8, True, 4), (1, 2, True), (4, 8, True, 4, 16)],
    ],
}


def compared(rank: Rank, timers: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Return microseconds of the slower rank, contestants in rotating order."""
    names = list(timers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rank.run.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            mine = torch.tensor([timers[name]()], dtype=torch.float64)
            dist.all_reduce(mine, op=dist.ReduceOp.MAX)
            if turn:
                times[name].append(float(mine))
    return times


def contestants(rank: Rank, it: dict[str, Any], tokens: int) -> dict[str, Callable[[], float]]:
    """Return a timer for each way to look `tokens` tokens up."""
    sets, timers = rank.ids(tokens, 12), {}

    def calls(function: Callable[[Tensor], Any]) -> list[Callable[[], Any]]:
        return [lambda ids=ids: function(ids) for ids in sets]

    local_hash, local = it["local"]
    timers[LOCAL] = rank.graph(calls(lambda ids: ops.look_up(local_hash, ids, [local])))
    for name in (PEER, AT_OWNER):
        if name in it:
            tables = it[name]
            timers[name] = rank.graph(
                calls(lambda ids, t=tables: ops.look_up_shards(rank.hashed, ids, t))
            )
    exchanged = calls(lambda ids: ops.look_up_shards(rank.hashed, ids, it["exchange"]))
    timers[BOUNDED] = rank.graph(exchanged)
    timers[COUNTED] = rank.eager(exchanged)
    if "host" in it:
        host_hash, store = it["host"]
        host = calls(lambda ids: store(ops.find_rows(host_hash, ids)[0]))
        timers[HOST] = (rank.graph if tokens <= 512 else rank.eager)(host)
    return timers


def prepare(rank: Rank, *, sweep: bool) -> dict[str, Any]:
    """Make what the contestants read."""
    it: dict[str, Any] = {PEER: rank.tables()}
    if sweep:
        it[AT_OWNER] = rank.tables(scales_here=False)
    tables: ShardedTables = it[PEER]
    print(*tables.lines(), sep="\n", flush=True)
    alone = copy.copy(tables)
    alone.memory = replace(tables.memory, every=())
    alone.number, alone._arguments = registry.register(alone), {}
    it["exchange"] = alone
    own = tables.held(rank.rank, 0, 0)
    per_head = tables.blocks.heights[0] // len(rank.layout.layers[0].moduli)
    small = world.published_layout("deepseek-v4.1", rows_per_head=per_head * 2 // 5)
    spec, hashed = rank.of(small, rank.layers)
    scales = tables.copies[rank.device].scales
    assert scales is not None
    height = spec.rows(rank.layers[0])
    it["local"] = hashed, Table(values=own[:height], scales=scales[0][:height])
    wanted = rank.run.host_rows // len(rank.layout.layers[0].moduli)
    spec, hashed = rank.of(
        world.published_layout("deepseek-v4.1", rows_per_head=wanted), rank.layers
    )
    memory = host_memory(spec.rows(rank.layers[0]) * 264, pinned=rank.device.type == "cuda")
    store = TieredEmbedding(
        spec, HostRows(memory.view(-1, 264)), device=rank.device, dtype=torch.bfloat16
    )
    it["host"] = hashed, store
    return it


def check(rank: Rank, tables: ShardedTables, tokens: Sequence[int]) -> bool:
    """Return whether vectors equal the plain version's on this rank."""
    same = True
    for count in tokens:
        ids = rank.ids(count, 1)[0]
        found = ops.look_up_shards(rank.hashed, ids, tables)
        same &= torch.equal(found.view(torch.int16), rank.expected(ids).view(torch.int16))
    return same


def copy_rate(rank: Rank, tables: ShardedTables) -> float:
    """Return GB/s of a copy from the peer, both ranks at once."""
    every = tables.memory.every
    if not every:
        return 0.0
    size = min(rank.run.copy_bytes, len(every[0]))
    target = torch.empty(size, dtype=torch.uint8, device=rank.device)
    source = every[1 - rank.rank][:size]
    timer = rank.eager([lambda: target.copy_(source)] * 4)
    times = compared(rank, {"copy": timer})["copy"]
    return size / statistics.median(times) / 1000


def case(
    rank: Rank, name: str, tokens: int, times: dict[str, list[float]], copied: float
) -> dict[str, Any]:
    """Return a case of the results; prints it."""
    medians = {key: statistics.median(found) for key, found in times.items()}
    remote = tokens * 24 * (RANKS - 1) / RANKS * 264
    rows = []
    for key, found in times.items():
        row = {
            "name": key,
            "median_us": round(medians[key], 3),
            "min_us": round(min(found), 3),
            "max_us": round(max(found), 3),
            "gb_s": round(tokens * 24 * (264 + 512) / medians[key] / 1000),
            "ratio": round(next(iter(medians.values())) / medians[key], 3),
        }
        if "peer" in key or "NCCL" in key or "(" in key:
            row["remote_gb_s"] = round(remote / medians[key] / 1000, 1)
            row["of_copy_percent"] = round(100 * remote / medians[key] / 1000 / copied, 1)
        rows.append(row)
        if rank.rank == 0:
            print(f"{name:34} {json.dumps(row)}", flush=True)
    bound = ""
    if PEER in medians:
        rate = remote / medians[PEER] / 1000
        bound = f"peer loads: remote rows at {rate:,.0f} GB/s, {rate / copied:.0%} of a copy from "
        bound += "the other GPU"
    return {"name": name, "tokens": tokens, "rows": rows, "bound": bound}


def swept(rank: Rank, it: dict[str, Any], copied: float) -> list[dict[str, Any]]:
    """Time other block sizes, and the kernel without counting."""
    cases = []
    for tokens in rank.run.tokens:
        timers = {}
        sets = rank.ids(tokens, 12)
        for source in (PEER, AT_OWNER):
            plans: list[Any] = [None, *PLANS.get(tokens, [(1, 1)])]
            for plan in plans if source == PEER else plans[:3]:
                tables = _variant(it[source], plan)
                name = f"{source} {plan}"
                timers[name] = rank.graph(_calls(rank, tables, sets))
        tables = _variant(it[PEER], None)
        told = tables.arguments(rank.device, None)
        told = told._replace(shards=told.shards._replace(counted=None))
        tables._arguments[rank.device, None] = told
        timers["(not counted)"] = rank.graph(_calls(rank, tables, sets))
        cases.append(
            case(rank, f"sweep, {tokens:,} tokens", tokens, compared(rank, timers), copied)
        )
    return cases


def _variant(tables: ShardedTables, plan: Any) -> ShardedTables:
    made = copy.copy(tables)
    made.number, made._arguments = registry.register(made), {}
    made.plan = None if plan is None else Plan(*plan)
    return made


def _calls(rank: Rank, tables: ShardedTables, sets: list[Tensor]) -> list[Callable[[], Any]]:
    return [
        lambda ids=ids: torch_ops.call_shards(ids, rank.hashed, LookBack(), tables) for ids in sets
    ]


def measure(rank: Rank, out: Path, *, sweep: bool) -> None:
    """Check, then time all contestants; rank 0 writes after each part."""
    begin = time.perf_counter()
    it = prepare(rank, sweep=sweep)
    document: dict[str, Any] = {
        "benchmark": "gpu_shard",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": "Microseconds of the slower of two GPUs that look up at once, median of "
        f"{rank.run.rounds} replays of a CUDA graph of {world.LAUNCHES} calls over 12 sets of "
        "uniformly random token ids; counts first, and the host from 4,096 tokens on, without a "
        "graph. Half of the rows are on the other GPU; remote rows count 264 bytes each. GB/s "
        "count useful bytes: the row read and the vector written.",
        "machine": machine(),
        "versions": versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
        "cases": [],
        "failed": [],
        "ready_s": round(time.perf_counter() - begin, 1),
    }
    if rank.device.type == "cuda":
        document["machine"] |= {"gpu": f"{RANKS} x {torch.cuda.get_device_name()}"}

    def attempt(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception:
            document["failed"].append(traceback.format_exc())
            print(rank.rank, traceback.format_exc(), flush=True)
            return None

    names = [name for name in (PEER, AT_OWNER, "exchange") if name in it]
    document["same"] = {
        name: attempt(lambda n=name: check(rank, it[n], rank.run.tokens)) for name in names
    }
    copied = attempt(lambda: copy_rate(rank, it[PEER])) or 1.0
    document["peer_copy_gb_s"] = round(copied, 1)
    print(rank.rank, document["same"], f"{copied:.1f} GB/s copied from the peer", flush=True)
    for tokens in rank.run.tokens:
        found = attempt(lambda n=tokens: compared(rank, contestants(rank, it, n)))
        if found:
            document["cases"].append(case(rank, f"{tokens:,} tokens", tokens, found, copied))
        if rank.rank == 0:
            out.write_text(json.dumps(document, indent=1) + "\n")
    if sweep:
        document["sweep"] = attempt(lambda: swept(rank, it, copied))
        if rank.rank == 0:
            out.write_text(json.dumps(document, indent=1) + "\n")
    document["counted"] = it[PEER].counted()
    print(rank.rank, "rows read, of them local:", document["counted"], flush=True)


def full(rank: Rank) -> None:
    """Allocate both layers, look up, compare."""
    begin = time.perf_counter()
    tables = rank.tables()
    size = rank.spec.table_bytes
    same = check(rank, tables, (*rank.run.tokens, 1000))
    print(
        f"{rank.rank}: {size:,} bytes in {sum(tables.blocks.heights):,} rows, one launch: "
        f"{tables.one_launch}, equal to the plain version: {same}, "
        f"{time.perf_counter() - begin:.1f} s",
        flush=True,
    )
    read, here = tables.counted()
    print(f"{rank.rank}: {read:,} rows read, {here:,} of them local", *tables.lines(), flush=True)
    if not same:
        raise SystemExit("not equal")


def process(number: int, meet: str, arguments: list[str]) -> None:
    """What each process does."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(number)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"file://{meet}",
        rank=number,
        world_size=RANKS,
        timeout=timedelta(seconds=60),  # of a rank that failed
        device_id=torch.device("cuda", number) if on_gpu else None,
    )
    run = TINY if "--tiny" in arguments else Run()
    given = [x for x in arguments if not x.startswith("--")]
    if "--full" in arguments:
        full(Rank(number, run, (1, 14)))
    else:
        out = Path(given[0]) if given else RESULTS / "gpu_shard.json"
        measure(Rank(number, run, (1,)), out, sweep="--sweep" in arguments)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meet")
        torch.multiprocessing.spawn(process, (meeting, sys.argv[1:]), nprocs=RANKS)

"""Rows in host memory under a decoder of 4 B parameters on one GPU, compared with rows in HBM.

    ENGRAM_PEERS=FOLDER python tests/benchmarks/gpu_offload.py [RESULT.json] [--tiny] [--no-host]

Two layers of DeepSeek-V4.1's geometry, whose rows, as many as `Run.rows_per_head` says, lie twice:
in HBM as they are stored, and in host memory as records. All three are one model, whose memories
are switched on and off, and take turns. Prefill: 8 sequences of 2,048 tokens, causal, without a
cache. Decode: 64 sequences, one step as a CUDA graph. ENGRAM_PEERS gives the vocabulary map only.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_decoder import Keys
from offload_world import BARE, EARLY, HBM, HOST, TINY, Bench, Run
from runner import RESULTS, commit, machine, versions
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from engram_cli.runtime.ops import has_kernels

ROUNDS = 7


def prefill(bench: Bench, names: list[str]) -> dict[str, Any]:
    """Seconds of a forward call, its token ids on the device before, until its logits are there."""
    sets = bench.ids(ROUNDS + 1, bench.run.prefill)
    times: dict[str, list[float]] = {name: [] for name in names}
    outcomes: dict[str, Tensor] = {}
    apart = 0.0
    for turn, ids in enumerate(sets):
        for name in names:
            bench.switch(name)
            _wait(bench.device)
            begin = time.perf_counter()
            logits = bench.model(ids)
            _wait(bench.device)
            if turn:
                times[name].append(time.perf_counter() - begin)
            outcomes[name] = logits
        apart = max(apart, _apart(outcomes))
    batch, count = bench.run.prefill
    tokens = batch * count
    return _case(f"prefill, {batch} x {count:,} tokens, one call at a time", tokens, times, apart)


def in_a_row(bench: Bench, names: list[str]) -> dict[str, Any]:
    """Seconds of a forward call where several follow each other without a wait between them."""
    sets = bench.ids(4, bench.run.prefill)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(3):
        for name in names:
            bench.switch(name)
            _wait(bench.device)
            begin = time.perf_counter()
            for place, ids in enumerate(sets):
                bench.model(ids)
                if name == EARLY and place + 1 < len(sets):
                    bench.memories[HOST].prefetch(sets[place + 1])
            _wait(bench.device)
            if turn:
                times[name].append((time.perf_counter() - begin) / len(sets))
    batch, count = bench.run.prefill
    name = f"prefill, {batch} x {count:,} tokens, {len(sets)} calls in a row"
    return _case(name, batch * count, times)


def decode(bench: Bench, names: list[str]) -> dict[str, Any]:
    """Seconds of a decode step, replayed from a graph over different token ids."""
    run = bench.run
    sets = bench.ids(run.replays, (run.batch, 1))
    replays: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in names:
        bench.switch(name)
        replays[name] = _step(bench)
    times: dict[str, list[float]] = {name: [] for name in names}
    apart = 0.0
    for turn in range(ROUNDS + 1):
        outcomes = {}
        for name in names:
            bench.switch(name)
            outcomes[name] = replays[name](sets[turn % len(sets)]).clone()
            _wait(bench.device)
            begin = time.perf_counter()
            for ids in sets:
                replays[name](ids)
            _wait(bench.device)
            if turn:
                times[name].append((time.perf_counter() - begin) / len(sets))
        apart = max(apart, _apart(outcomes))
    what = f"decode, {run.batch} sequences, {run.attended:,} positions attended to"
    found = _case(what, run.batch, times, apart)
    if HOST in names:
        twice = _apart(_steps(bench, {HBM: HBM, HOST: HBM}, []))
        same = _apart(_steps(bench, {HBM: HBM, HOST: HOST}, [SDPBackend.MATH]))
        found["facts"]["rows in HBM, twice: logits differ by at most"] = twice
        found["facts"]["host and HBM, attention by matrix products"] = same
        found["notes"] = "; ".join(f"{key}: {value}" for key, value in found["facts"].items())
        print(found["notes"], flush=True)
    return found


def _steps(bench: Bench, which: dict[str, str], backends: list[SDPBackend]) -> dict[str, Tensor]:
    """Return the logits of an eager decode step of each memory.

    What SDPA chooses for a decode step on an H200 adds up in an order that changes: the same model
    gives other logits each time. The backend MATH is made of matrix products instead.
    """
    found, run = {}, bench.run
    with sdpa_kernel(backends) if backends else nullcontext():
        for name, memory in which.items():
            bench.switch(memory)
            keys = Keys(bench.model.size, run.batch, run.attended, bench.model.embedding.weight)
            bench.model(bench.ids(1, (run.batch, 8))[0], keys)
            found[name] = bench.model(bench.ids(2, (run.batch, 1))[1], keys)
    return found


def _step(bench: Bench) -> Callable[[Tensor], Tensor]:
    """A decode step after a short prefill: ids [B, 1] to logits, at the same address each time."""
    run, device = bench.run, bench.device
    keys = Keys(bench.model.size, run.batch, run.attended, bench.model.embedding.weight)
    ids = torch.zeros(run.batch, 1, dtype=torch.int64, device=device)
    bench.model(bench.ids(1, (run.batch, 8))[0], keys)

    def eager(given: Tensor) -> Tensor:
        ids.copy_(given)
        found: Tensor = bench.model(ids, keys)
        return found

    for _ in range(2):
        eager(ids)
    if device.type != "cuda":
        return eager
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        eager(ids)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = bench.model(ids, keys)

    def replay(given: Tensor, _held: Keys = keys) -> Tensor:  # the graph reads and writes keys
        ids.copy_(given)
        graph.replay()
        return logits

    return replay


def _apart(outcomes: dict[str, Tensor]) -> float:
    """How far logits of the host's rows are from those of HBM's, at most."""
    if HBM not in outcomes or HOST not in outcomes:
        return 0.0
    return (outcomes[HBM].float() - outcomes[HOST].float()).abs().max().item()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _case(
    name: str, tokens: int, times: dict[str, list[float]], apart: float | None = None
) -> dict[str, Any]:
    """A case of the results; prints it."""
    medians = {key: statistics.median(found) for key, found in times.items()}
    rows = []
    for key, median in medians.items():
        row = {
            "name": key,
            "median_s": round(median, 7),
            "min_s": round(min(times[key]), 7),
            "max_s": round(max(times[key]), 7),
            "rate": round(tokens / median),
            "ratio": round(medians[BARE] / median, 4),
        }
        if key in (HOST, EARLY) and HBM in medians:
            row["lost_to_hbm_percent"] = round(100 * (1 - medians[HBM] / median), 2)
        rows.append(row)
        print(f"{name:60} {key:30} {median * 1e3:9.3f} ms {row}"[:170], flush=True)
    facts = {
        f"{row['name']}: % lost against rows in HBM": row["lost_to_hbm_percent"]
        for row in rows
        if "lost_to_hbm_percent" in row
    }
    if apart is not None and HOST in medians:
        facts["logits of host and HBM differ by at most"] = apart
    print(facts, flush=True)
    return {
        "name": name,
        "amount": tokens,
        "unit": "tokens",
        "runs": len(next(iter(times.values()))),
        "notes": "; ".join(f"{key}: {value}" for key, value in facts.items()),
        "facts": facts,
        "rows": rows,
    }


def main(out: Path, run: Run, device: torch.device, wanted: Sequence[str]) -> None:
    """Measure bare and HBM, then with the host's rows; write after each."""
    bench = Bench(run, device)
    parameters = sum(x.numel() for x in bench.model.parameters())
    document: dict[str, Any] = {
        "benchmark": "gpu_offload",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": f"{parameters / 1e9:.2f} B dense parameters; rows of layers "
        f"{run.layers[0]} and {run.layers[1]}: {bench.spec.table_bytes / 1e9:,.1f} GB.",
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if _is_gpu(device) else {}),
        "versions": versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
        "cases": [],
        "failed": [],
    }
    attached = [BARE]
    for name, attach in ((HBM, bench.attach_hbm), (HOST, bench.attach_host)):
        if name not in wanted:
            continue
        try:
            begin = time.perf_counter()
            attach()
            attached.append(name)
            print(f"{name}: ready after {time.perf_counter() - begin:.1f} s", flush=True)
        except Exception:
            document["failed"].append(f"{name}: {traceback.format_exc()}")
            print(traceback.format_exc(), flush=True)
    early = [EARLY] if HOST in attached else []
    for measure, names in ((prefill, attached), (in_a_row, attached + early), (decode, attached)):
        try:
            with torch.no_grad():
                document["cases"].append(measure(bench, names))
        except (Exception, SystemExit):
            document["failed"].append(f"{measure.__name__}: {traceback.format_exc()}")
            print(traceback.format_exc(), flush=True)
        if HOST in attached:
            document["counters"] = asdict(bench.memories[HOST].counters)
            print(document["counters"], flush=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    if _is_gpu(device) and not has_kernels(device):
        raise SystemExit("no kernels ran")


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


if __name__ == "__main__":
    given = [x for x in sys.argv[1:] if not x.startswith("--")]
    main(
        Path(given[0]) if given else RESULTS / "gpu_offload.json",
        TINY if "--tiny" in sys.argv else Run(),
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        (HBM,) if "--no-host" in sys.argv else (HBM, HOST),
    )

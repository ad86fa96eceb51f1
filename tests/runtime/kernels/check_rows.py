"""The kernels of row gradients equal their twins: run by test_interpreted.py, and by tests/gpu.

Triton decides when it is imported whether it interprets kernels, so this is no module of the main
test run.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lookup_cases import FORMS, a_table, the_hash
from runtime.kernels.row_cases import CASES, RowCase
from torch import Tensor, nn

from engram_cli.runtime import lookup_reference, ops, row_gradients, torch_ops_rows
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.row_optimisers import RowwiseAdagrad, RowwiseAdam
from engram_cli.runtime.tables import Table

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter truncates to bfloat16, where a GPU rounds.
ROUNDED = DTYPES if DEVICE.type == "cuda" else (torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert ops.has_kernels(DEVICE)


def on_cpu(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies where the twin adds in the order it defines; on a GPU torch adds in any."""
    return tuple(tensor.detach().cpu().clone() for tensor in tensors)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sums_are_the_twins_to_the_bit(case: RowCase) -> None:
    values, rows = case.make(DEVICE)
    found, sums = ops.sum_rows(values, rows, case.height)
    expected, wanted = row_gradients.sum_rows(*on_cpu(values, rows), case.height)
    assert sums.dtype == torch.float32
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(sums.cpu(), wanted)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", ROUNDED)
def test_dense_gradients_are_the_twins(case: RowCase, dtype: torch.dtype) -> None:
    values, rows = case.make(DEVICE)
    if case.height > 1000 and DEVICE.type == "cpu":
        pytest.skip("one of these is enough")
    sorted_, atomic = (
        torch_ops_rows.dense_row_gradient(values, rows, case.height, dtype, how).cpu()
        for how in (False, True)
    )
    expected = row_gradients.dense_gradient(*on_cpu(values, rows), case.height, dtype)
    assert torch.equal(sorted_, expected)
    torch.testing.assert_close(atomic, expected)


# A unit in the last place of a table's values, which are below 4; a few in float32.
NEAR = {
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 0.0},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}
STEPS: dict[str, Callable[..., None]] = {
    "adagrad": lambda to, weight, state, *g: to.adagrad_step(weight, state[0], *g, 0.3, 1e-8),
    "adam": lambda to, weight, state, *g: to.adam_step(weight, state, *g, 0.3, (0.9, 0.99), 1e-8),
}


def _state(name: str, case: RowCase) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(9)
    if name == "adagrad":
        return (torch.rand(case.height, generator=generator),)
    pair = torch.rand(2, case.height, case.dim, generator=generator)
    return (pair[0].clone(), pair[1].clone(), torch.tensor(7.0))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", ROUNDED)
def test_steps_are_the_twins(case: RowCase, name: str, dtype: torch.dtype) -> None:
    """Adam's state to the bit; Adagrad's mean over a row is taken in another order."""
    if DEVICE.type == "cpu" and (case.height > 1000 or (dtype != torch.float32 and case.hot)):
        pytest.skip("for a GPU")
    values, rows = case.make(DEVICE)
    weight = torch.randn(case.height, case.dim, generator=torch.Generator().manual_seed(1))
    weight = weight.to(dtype)
    state = _state(name, case)
    mine, own = weight.to(DEVICE).clone(), tuple(part.to(DEVICE).clone() for part in state)
    STEPS[name](ops, mine, own, values, rows)
    STEPS[name](row_gradients, weight, state, *on_cpu(values, rows))
    torch.testing.assert_close(mine.cpu(), weight, **NEAR[dtype])
    for found, expected in zip(own, state, strict=True):
        exact = {"atol": 0.0, "rtol": 0.0} if name == "adam" else NEAR[torch.float32]
        torch.testing.assert_close(found.cpu(), expected, **exact)


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_a_rate_on_the_device_is_the_number(name: str) -> None:
    case = RowCase(count=40)
    values, rows = case.make(DEVICE)
    found = []
    for rate in (0.3, torch.full((), 0.3, dtype=torch.float64, device=DEVICE)):
        weight = torch.ones(case.height, case.dim, device=DEVICE)
        state = tuple(part.to(DEVICE) for part in _state(name, case))
        if name == "adagrad":
            ops.adagrad_step(weight, state[0], values, rows, rate, 1e-8)
        else:
            ops.adam_step(weight, state, values, rows, rate, (0.9, 0.99), 1e-8)
        found.append(weight)
    assert torch.equal(*found)
    assert not torch.equal(found[0], torch.ones_like(found[0]))


def test_the_look_up_writes_the_rows_that_its_gradient_needs() -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["dead"](DEVICE)
    for dim in (12, 1100):
        leaves = [a_table("float32", h, dim, DEVICE).values for h in hashed.heights]
        tables = [Table(values=leaf.requires_grad_(), gradients="sparse") for leaf in leaves]
        out = ops.look_up(hashed, ids, tables, back)
        ids_before = ids.clone()
        ids.zero_()  # what a loop may do with its batch before the backward pass
        out.sum().backward()
        ids.copy_(ids_before)
        rows = lookup_reference.find_rows(hashed, ids, back)
        for leaf, own in zip(leaves, rows, strict=True):
            assert torch.equal(leaf.grad._indices()[0], own.reshape(-1))


def test_a_table_whose_rows_lie_apart_takes_steps() -> None:
    case = RowCase(count=40)
    values, rows = case.make(DEVICE)
    whole = torch.randn(case.height, case.dim + 5, generator=torch.Generator().manual_seed(2))
    expected = whole.clone()
    mine = whole.to(DEVICE)
    for name, step in STEPS.items():
        own = tuple(part.to(DEVICE) for part in _state(name, case))
        step(ops, mine[:, : case.dim], own, values, rows)
        step(row_gradients, expected[:, : case.dim], _state(name, case), *on_cpu(values, rows))
    torch.testing.assert_close(mine.cpu(), expected)
    assert torch.equal(mine[:, case.dim :].cpu(), whole[:, case.dim :])


def _gradients(call: object, tables: list[Table], how: str) -> list[Tensor]:
    leaves = [table.values.detach().clone().requires_grad_() for table in tables]
    out = call([Table(values=leaf, gradients=how) for leaf in leaves])  # type: ignore[operator]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    (out * weight).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("how", ["dense", "sparse", "atomic"])
def test_the_look_ups_gradients_equal_the_twins(how: str) -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["dead"](DEVICE)
    tables = [a_table("float32", height, 12, DEVICE) for height in hashed.heights]
    found = _gradients(lambda t: ops.look_up(hashed, ids, t, back), tables, how)
    expected = _gradients(lambda t: lookup_reference.look_up(hashed, ids, t, back), tables, how)
    assert len(found) == len(expected) == 2
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.is_sparse == theirs.is_sparse == (how == "sparse")
        torch.testing.assert_close(mine.to_dense(), theirs.to_dense(), rtol=1e-5, atol=1e-6)


def test_an_expanded_gradient_and_no_tokens() -> None:
    hashed = the_hash("one head", DEVICE)
    for how in ("dense", "sparse", "atomic"):
        for count in (3, 0):
            ids = torch.arange(count, device=DEVICE)[None]
            leaves = [
                a_table("float32", height, 4, DEVICE).values.requires_grad_()
                for height in hashed.heights
            ]
            tables = [Table(values=leaf, gradients=how) for leaf in leaves]
            ops.look_up(hashed, ids, tables).sum().backward()
            for leaf in leaves:
                assert float(leaf.grad.to_dense().sum()) == 4 * ids.numel() * len(hashed.orders)
                assert (leaf.grad._nnz() if how == "sparse" else len(leaf)) <= len(leaf)


@pytest.mark.parametrize("optimiser", [RowwiseAdagrad, RowwiseAdam])
def test_accumulated_gradients_take_one_step(optimiser: type[torch.optim.Optimizer]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(30, 8, generator=generator)
    parts = [torch.randint(0, 30, (20,), generator=generator).to(DEVICE) for _ in range(2)]
    found = []
    for batches in ([torch.cat(parts)], parts):
        table = nn.Embedding(30, 8, sparse=True, _weight=start.clone()).to(DEVICE)
        steps = optimiser(table.parameters(), lr=0.1)
        for rows in batches:
            (table(rows) ** 2).sum().backward()
        steps.step()
        found.append(table.weight.detach())
    torch.testing.assert_close(*found)


def test_the_operators_keep_torchs_rules() -> None:
    values, rows = RowCase(count=9, height=5, dim=4).make(DEVICE)
    weight, sums = torch.randn(5, 4).to(DEVICE), torch.rand(5).to(DEVICE)
    mean, square = torch.rand(2, 5, 4).to(DEVICE)
    steps = torch.ones((), device=DEVICE)
    lr = torch.full((), 0.1, dtype=torch.float64, device=DEVICE)
    calls = [
        (torch_ops_rows.dense_row_gradient, (values, rows, 5, torch.float32, False)),
        (torch_ops_rows.sum_rows, (values, rows, 5)),
        (torch_ops_rows.adagrad_operator, (weight, sums, values, rows, lr, 1e-8)),
        (
            torch_ops_rows.adam_operator,
            (weight, mean, square, steps, values, rows, lr, 0.9, 0.99, 1e-8),
        ),
    ]
    for operator, arguments in calls:
        rules = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(operator, arguments, test_utils=rules)


def test_a_poisoned_output_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_cli.runtime.kernels import rows as kernels

    def poisoned(*shape: object, **options: object) -> Tensor:
        return torch.full(*shape, float("nan"), **options)  # type: ignore[call-overload, no-any-return]

    values, rows = CASES["a hot row"].make(DEVICE)
    expected = row_gradients.sum_rows(*on_cpu(values, rows), 500)[1]
    monkeypatch.setattr(kernels.torch, "empty", poisoned)
    assert torch.equal(ops.sum_rows(values, rows, 500)[1].cpu(), expected)


def test_a_look_back_of_sparse_rows() -> None:
    hashed = the_hash("qwen-ple", DEVICE)
    ids = torch.arange(12, device=DEVICE)[None] % 5
    leaves = [a_table("float32", height, 4, DEVICE).values for height in hashed.heights]
    tables = [Table(values=leaf.requires_grad_(), gradients="sparse") for leaf in leaves]
    back = LookBack(ages=(torch.arange(12, device=DEVICE) % 7)[None])
    ops.look_up(hashed, ids, tables, back).sum().backward()
    rows = lookup_reference.find_rows(hashed, ids, back)
    for leaf, own in zip(leaves, rows, strict=True):
        assert torch.equal(leaf.grad._indices()[0], own.reshape(-1))


@pytest.mark.parametrize("how", ["dense", "sparse"])
def test_compiled_it_has_the_same_gradient(how: str) -> None:
    hashed = the_hash("one head", DEVICE)
    ids = torch.arange(6, device=DEVICE)[None] % 4
    found = []
    for way in (lambda call: call, lambda call: torch.compile(call, backend="aot_eager")):
        leaves = [a_table("float32", h, 4, DEVICE).values.requires_grad_() for h in hashed.heights]

        def forward(ids: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
            tables = [Table(values=leaf, gradients=how) for leaf in leaves]
            return ops.look_up(hashed, ids, tables) * 2

        way(forward)(ids).square().sum().backward()
        found.append([leaf.grad.to_dense() for leaf in leaves])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)

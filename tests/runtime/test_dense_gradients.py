"""Dense gradients of rows on a CPU equal those of torch's embedding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runtime.kernels.gate_cases import FORWARD_MODE
from torch import Tensor

from engram_cli.runtime import dense_gradients
from engram_cli.runtime.dense_gradients import look_up

HEIGHT, DIM = 50, 6


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A table, rows that occur several times, and a gradient."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(HEIGHT, DIM, generator=generator).to(dtype).requires_grad_()
    rows = torch.randint(0, HEIGHT - 9, (4, 30, 5), generator=generator)
    return weight, rows, torch.randn(*rows.shape, DIM, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["as it is", "transposed"])
def test_values_and_gradients(dtype: torch.dtype, order: str) -> None:
    weight, rows, gradient = given(dtype)
    if order == "transposed":
        rows, gradient = rows.transpose(0, 2), gradient.transpose(0, 2)
    out, expected = look_up(weight, rows), F.embedding(rows, weight)
    assert out.grad_fn is not None
    assert out.grad_fn.name() == "_LookUpBackward"
    assert torch.equal(out, expected)
    (found,) = torch.autograd.grad(out, weight, gradient)
    (theirs,) = torch.autograd.grad(expected, weight, gradient)
    assert found.dtype == dtype
    if dtype.itemsize > 2:
        assert torch.equal(found, theirs)
    else:  # torch rounds after each addition
        exact = torch.zeros(HEIGHT, DIM, dtype=torch.float64)
        exact.index_add_(0, rows.flatten(), gradient.double().flatten(0, 2))
        mine, others = ((x.double() - exact).norm() for x in (found, theirs))
        assert mine < others
    assert not found[-9:].any()


def test_gradients_add_up_and_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rows, gradient = given()
    made: list[int] = []
    inner = dense_gradients.zeros

    def noted(shape: torch.Size, dtype: torch.dtype) -> Tensor:
        found = inner(shape, dtype)
        made.append(found.data_ptr())
        return found

    monkeypatch.setattr(dense_gradients, "zeros", noted)
    look_up(weight, rows).backward(gradient)
    assert weight.grad is not None
    assert weight.grad.data_ptr() == made[0]
    once = weight.grad.clone()
    look_up(weight, rows).backward(gradient)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_a_gradient_of_a_gradient() -> None:
    weight, rows, _ = given()
    found = []
    for way in (look_up, lambda weight, rows: F.embedding(rows, weight)):
        out = way(weight, rows)
        (first,) = torch.autograd.grad(out.pow(3).sum(), weight, create_graph=True)
        found += torch.autograd.grad(first.square().sum(), weight)
    torch.testing.assert_close(*found)


@FORWARD_MODE
def test_what_is_left_to_torch() -> None:
    weight, rows, gradient = given()

    def name(weight: Tensor) -> str:
        made = look_up(weight, rows).grad_fn
        return "none" if made is None else made.name()

    assert name(weight) == "_LookUpBackward"
    assert name(weight.detach()) == "none"
    with torch.no_grad():
        assert name(weight) == "none"
    expected = torch.zeros(HEIGHT, DIM).index_add(0, rows.flatten(), gradient.flatten(0, 2))
    slopes = torch.func.grad(lambda own: (look_up(own, rows) * gradient).sum())(weight.detach())
    torch.testing.assert_close(slopes, expected)
    compiled = torch.compile(look_up, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(weight, rows), weight, gradient)
    torch.testing.assert_close(found, expected)
    ones = torch.ones_like(weight)
    _, tangent = torch.func.jvp(lambda own: look_up(own, rows), (weight.detach(),), (ones,))
    assert torch.equal(tangent, torch.ones_like(gradient))

"""The gate's twin, which is its definition; the kernels are held to it by check_gate.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from runtime.kernels.gate_cases import GateCase, make_call

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import gate_reference, ops


@pytest.mark.parametrize("case", [GateCase(conv=False), GateCase(keep=True, age=True)])
def test_gradients_are_those_of_finite_differences(case: GateCase) -> None:
    small = dataclasses.replace(
        case, batch=1, count=6, streams=2, width=5, dilation=2, dtype=torch.float64
    )
    call = make_call(small)
    clean = call.hidden.detach().nan_to_num().requires_grad_()
    names = [f for f in ("query", "key", "norm", "taps") if getattr(call.weights, f) is not None]

    def run(hidden: torch.Tensor, projected: torch.Tensor, *values: torch.Tensor) -> Any:
        own = dataclasses.replace(call.weights, **dict(zip(names, values, strict=True)))
        return gate_reference.gate(own, hidden, projected, call.past, **call.options)[0]

    weights = [getattr(call.weights, name) for name in names]
    assert torch.autograd.gradcheck(run, (clean, call.projected, *weights))


def test_alien_shapes_are_refused() -> None:
    call = make_call(GateCase())
    with pytest.raises(RuntimeAttachError, match="projections"):
        dataclasses.replace(call, projected=call.projected[..., :-1]).run(gate_reference.gate)


def test_ops_give_the_twin_where_there_is_no_kernel() -> None:
    call = make_call(GateCase(dtype=torch.float64))
    with torch.no_grad():
        assert torch.equal(call.run(ops.gate)[0], call.run(gate_reference.gate)[0])
    # With a gradient, `gate_autograd` rounds otherwise.
    torch.testing.assert_close(
        call.run(ops.gate)[0], call.run(gate_reference.gate)[0], rtol=1e-12, atol=1e-12
    )


def test_weights_know_how_far_back_they_reach() -> None:
    assert make_call(GateCase()).weights.reach == 6
    own = make_call(GateCase(conv=False)).weights
    assert (own.reach, own.streams, own.width) == (0, 2, 40)

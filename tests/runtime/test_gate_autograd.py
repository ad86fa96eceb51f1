"""The written-out gradient of the gate is the one that autograd finds for its twin."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from runtime.kernels.gate_cases import FORWARD_MODE, NEAR, GateCase, far, make_call

from engram_cli.runtime import gate_autograd, gate_reference, ops

CASES = {
    "gate": GateCase(conv=False),
    "one stream": GateCase(streams=1),
    "streams": GateCase(streams=3, residual=False),
    "padded": GateCase(keep=True),
    "packed": GateCase(age=True),
    "padded and packed, centred": GateCase(keep=True, age=True, centred=True, streams=1),
    "shorter than the convolution": GateCase(count=3, dilation=3),
    "a tail": GateCase(tail=2),
    "bfloat16": GateCase(dtype=torch.bfloat16, streams=1),
    "added in float32": GateCase(
        dtype=torch.bfloat16, out=torch.float32, residual=False, conv=False
    ),
    "float16": GateCase(dtype=torch.float16, keep=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_the_twins(case: GateCase) -> None:
    call = make_call(case)
    assert gate_autograd.applies(call.weights, call.hidden, call.projected, call.past)
    (out, inputs), (expected, kept) = (call.run(f.gate) for f in (gate_autograd, gate_reference))
    assert far(out, expected) < NEAR[case.dtype]
    assert (inputs is None) == (kept is None)
    if inputs is not None and kept is not None:
        assert far(inputs, kept) < NEAR[case.dtype]
        assert not inputs.requires_grad
    for found, twin in zip(
        call.gradients(gate_autograd.gate), call.gradients(gate_reference.gate), strict=True
    ):
        assert far(found, twin) < NEAR[case.dtype]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_float64_they_are_equal(case: GateCase) -> None:
    call = make_call(case).wider()
    for found, twin in zip(
        call.gradients(gate_autograd.gate), call.gradients(gate_reference.gate), strict=True
    ):
        assert far(found, twin) < 1e-12


@pytest.mark.parametrize(
    "case",
    [GateCase(), GateCase(conv=False, streams=1), GateCase(age=True, centred=True, residual=False)],
)
def test_second_derivatives_are_the_twins(case: GateCase) -> None:
    call = make_call(case).wider()
    for found, twin in zip(
        call.second_gradients(ops.gate), call.second_gradients(gate_reference.gate), strict=True
    ):
        assert far(found, twin) < 1e-12


def test_second_derivatives_of_some_leaves() -> None:
    call = make_call(GateCase()).wider()
    assert call.weights.taps is not None
    call.weights.taps.requires_grad_(False)
    own = dataclasses.replace(call, gradient=torch.ones_like(call.gradient))
    results = []
    for function in (ops.gate, gate_reference.gate):
        out, _ = own.run(function)
        (first,) = torch.autograd.grad(out.sum(), [own.projected], create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [own.hidden, own.weights.query]))
    for found, twin in zip(*results, strict=True):
        assert far(found, twin) < 1e-12


@FORWARD_MODE
def test_forward_mode_and_functional_transforms_are_the_twins() -> None:
    call = make_call(GateCase(streams=1)).wider()
    direction = torch.randn_like(call.hidden)

    def loss(hidden: torch.Tensor, function: Any) -> torch.Tensor:
        return dataclasses.replace(call, hidden=hidden).run(function)[0].square().sum()

    results = []
    for function in (ops.gate, gate_reference.gate):
        own = partial(loss, function=function)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(call.hidden, direction)
            tangent = torch.autograd.forward_ad.unpack_dual(own(dual)).tangent
        pushed = torch.func.jvp(own, (call.hidden.detach(),), (direction,))[1]
        mapped = torch.func.vmap(torch.func.grad(own))(call.hidden.detach()[None])[0]
        results.append((tangent, pushed, mapped))
    assert far(results[1][0], results[1][1]) < 1e-12
    for found, twin in zip(*results, strict=True):
        assert far(found, twin) < 1e-12


def test_where_the_root_is_cut_off_there_is_no_slope() -> None:
    call = make_call(GateCase(conv=False, streams=1)).wider()
    keys = call.projected.detach().clone()
    keys[0, 0, :40] = 0
    call = dataclasses.replace(call, projected=keys.requires_grad_())
    for found, twin in zip(
        call.gradients(gate_autograd.gate), call.gradients(gate_reference.gate), strict=True
    ):
        assert far(found, twin) < 1e-12


def test_frozen_weights_get_no_gradient() -> None:
    call = make_call(GateCase())
    for weight in (call.weights.taps, call.weights.norm, call.hidden):
        assert weight is not None
        weight.requires_grad_(False)
    out, _ = call.run(ops.gate)
    out.backward(call.gradient)
    assert call.hidden.grad is None
    assert call.weights.taps is not None
    assert call.weights.taps.grad is None
    assert call.projected.grad is not None


def test_it_is_for_training_alone() -> None:
    call = make_call(GateCase(history=True))
    arguments = (call.weights, call.hidden, call.projected)
    assert not gate_autograd.applies(*arguments, call.past), "a history is the twin's work"
    assert gate_autograd.applies(*arguments, gate_reference.NO_PAST)
    with torch.no_grad():
        assert not gate_autograd.applies(*arguments, gate_reference.NO_PAST)
    frozen = make_call(GateCase())
    for leaf in frozen.leaves:
        leaf.requires_grad_(False)
    assert not gate_autograd.applies(
        frozen.weights, frozen.hidden, frozen.projected, gate_reference.NO_PAST
    )

"""The gate's kernels equal their twin on small shapes: run by test_interpreted.py.

Triton decides when it is imported whether it interprets kernels, so this is no module of the main
test run. Where there is a CUDA device it runs there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from runtime.kernels.gate_cases import FORWARD_MODE, NEAR, GateCase, far, make_call

from engram_cli.runtime import gate_reference, ops, torch_ops_gate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CASES = {
    "gate": GateCase(conv=False),
    "gate, padded, one stream": GateCase(conv=False, keep=True, streams=1, residual=False),
    "gate, centred": GateCase(conv=False, centred=True, width=33),
    "gate, added in float32": GateCase(
        conv=False, dtype=torch.bfloat16, out=torch.float32, residual=False
    ),
    "conv": GateCase(),
    "conv, padded": GateCase(keep=True),
    "conv, packed, centred": GateCase(age=True, centred=True, residual=False),
    "conv, padded and packed": GateCase(age=True, keep=True, streams=1),
    "conv, other taps": GateCase(taps=3, dilation=3, streams=3, count=5, width=17),
    "conv, wide": GateCase(width=300, count=5, batch=1),
    "conv, one position": GateCase(count=1),
    "conv, a tail": GateCase(tail=4),
    "gate, bfloat16": GateCase(conv=False, dtype=torch.bfloat16),
    "conv, bfloat16": GateCase(dtype=torch.bfloat16),
    "conv, float16": GateCase(dtype=torch.float16, count=6),
}


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert ops.has_kernels(torch.device(DEVICE))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_output_is_the_twins(case: GateCase) -> None:
    call = make_call(case, DEVICE)
    out, inputs = call.run(ops.gate)
    expected, kept = call.run(gate_reference.gate)
    assert far(out, expected) < NEAR[case.dtype]
    assert (inputs is None) == (kept is None) == (not case.conv)
    if inputs is not None:
        assert far(inputs, kept) < NEAR[case.dtype]
        assert not inputs.requires_grad


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_are_the_twins(case: GateCase) -> None:
    call = make_call(case, DEVICE)
    for found, expected in zip(
        call.gradients(ops.gate), call.gradients(gate_reference.gate), strict=True
    ):
        assert far(found, expected) < NEAR[case.dtype]


@pytest.mark.parametrize("conv", [False, True])
def test_second_gradients_are_the_twins(conv: bool) -> None:
    call = make_call(GateCase(count=3, batch=1, width=17, conv=conv), DEVICE)
    for found, expected in zip(
        call.second_gradients(ops.gate), call.second_gradients(gate_reference.gate), strict=True
    ):
        assert far(found, expected) < 1e-4


@FORWARD_MODE
def test_a_tangent_is_not_dropped() -> None:
    call = make_call(GateCase(count=3, batch=1, width=17), DEVICE)
    frozen = dataclasses.replace(call, hidden=call.hidden.detach())
    for leaf in call.leaves:
        leaf.requires_grad_(False)
    direction = torch.ones_like(frozen.hidden)
    found = []
    for function in (ops.gate, gate_reference.gate):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(frozen.hidden, direction)
            out, _ = dataclasses.replace(frozen, hidden=dual).run(function)
            found.append(torch.autograd.forward_ad.unpack_dual(out).tangent)
    assert found[0] is not None
    assert far(*found) < NEAR[torch.float32]


@pytest.mark.parametrize("options", [{}, {"age": True}, {"keep": True, "dtype": torch.bfloat16}])
def test_a_history_goes_before(options: dict[str, Any]) -> None:
    call = make_call(GateCase(history=True, **options), DEVICE)
    with torch.no_grad():
        out, inputs = call.run(ops.gate)
    expected, kept = call.run(gate_reference.gate)
    assert far(out, expected) < NEAR[call.hidden.dtype]
    assert far(inputs, kept) < NEAR[call.hidden.dtype]


def test_the_same_bits_however_a_line_is_cut() -> None:
    call = make_call(GateCase(count=10, batch=1, dtype=torch.bfloat16), DEVICE)
    with torch.no_grad():
        whole, inputs = call.run(ops.gate)
    begin = 8  # the history has 6 positions
    rest = dataclasses.replace(
        call,
        hidden=call.hidden[:, begin:],
        projected=call.projected[:, begin:],
        past=gate_reference.Past(history=inputs[:, begin - 6 : begin]),
    )
    with torch.no_grad():
        assert torch.equal(rest.run(ops.gate)[0], whole[:, begin:])


def test_gradients_are_the_same_bits_every_time() -> None:
    call = make_call(GateCase(keep=True), DEVICE)
    for first, second in zip(call.gradients(ops.gate), call.gradients(ops.gate), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_no_positions() -> None:
    for conv in (False, True):
        out, _ = make_call(GateCase(count=0, conv=conv), DEVICE).run(ops.gate)
        assert out.shape == (2, 0, 2, 40)


def test_hidden_states_that_do_not_lie_in_one_piece() -> None:
    call = make_call(GateCase(), DEVICE)
    apart = call.hidden.detach().transpose(0, 1).contiguous().transpose(0, 1)
    assert not apart.is_contiguous()
    out, _ = dataclasses.replace(call, hidden=apart).run(ops.gate)
    assert torch.equal(out, call.run(ops.gate)[0])


@pytest.mark.parametrize("conv", [False, True])
def test_the_operators_are_well_formed(conv: bool) -> None:
    call = make_call(GateCase(conv=conv, keep=True), DEVICE)
    own = call.weights
    arguments = (call.hidden.detach().nan_to_num().requires_grad_(), *call.leaves[1:4])
    rest = (call.past.keep, None, None, 1e-6, 1e-5, 2, False, True, torch.float32, 9)
    arguments = (*arguments, own.norm, own.taps, *rest)
    torch.library.opcheck(
        torch_ops_gate.gate,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_torch_compile_sees_one_operator() -> None:
    call = make_call(GateCase(count=4, batch=1), DEVICE)
    compiled = torch.compile(ops.gate, fullgraph=True, backend="aot_eager")
    for found, expected in zip(call.gradients(compiled), call.gradients(ops.gate), strict=True):
        assert torch.equal(found, expected)

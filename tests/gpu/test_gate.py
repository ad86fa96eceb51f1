"""The gate's kernels on a CUDA device: against the twin, compiled, in a graph, on other streams."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runtime.kernels.gate_cases import NEAR, GateCase, far, make_call

from engram_cli.runtime import gate_reference, ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CASES = {
    "gate": GateCase(conv=False, width=2560, streams=4, count=300),
    "gate, padded": GateCase(conv=False, keep=True, width=896, streams=1, count=130),
    "gate, added in float32": GateCase(
        conv=False, dtype=torch.bfloat16, out=torch.float32, residual=False, width=2560
    ),
    "conv": GateCase(width=2560, streams=4, count=300),
    "conv, padded and packed": GateCase(keep=True, age=True, width=1000, count=257),
    "conv, centred, wide": GateCase(centred=True, width=7168, streams=2, count=70),
    "gate, bfloat16": GateCase(conv=False, dtype=torch.bfloat16, width=2560, streams=4, count=300),
    "conv, bfloat16": GateCase(dtype=torch.bfloat16, width=2560, streams=4, count=300),
    "conv, float16": GateCase(dtype=torch.float16, width=1024, streams=1, count=600),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_the_twins(case: GateCase) -> None:
    """As near as the tolerance, or as near to the twin in float64 as the twin itself.

    Where a dot product is near 0 its root is steep: there float32 has no five digits in any order.
    """
    call = make_call(case, "cuda")
    exact = call.wider()
    for found, twin, true in zip(
        (call.run(ops.gate)[0], *call.gradients(ops.gate)),
        (call.run(gate_reference.gate)[0], *call.gradients(gate_reference.gate)),
        (exact.run(gate_reference.gate)[0], *exact.gradients(gate_reference.gate)),
        strict=True,
    ):
        true = true.to(found.dtype) if case.dtype == torch.float32 else twin
        assert far(found, true) < max(NEAR[case.dtype], 2 * far(twin, true))
    inputs, kept = (call.run(function)[1] for function in (ops.gate, gate_reference.gate))
    if inputs is not None:
        assert far(inputs, kept) < NEAR[case.dtype]


def test_gradients_are_the_same_bits_every_time() -> None:
    call = make_call(CASES["conv, bfloat16"], "cuda")
    first = call.gradients(ops.gate)
    for _ in range(3):
        assert all(map(torch.equal, call.gradients(ops.gate), first))


def test_a_decode_step_continues_a_line() -> None:
    call = make_call(GateCase(width=2560, streams=4, count=40, dtype=torch.bfloat16), "cuda")
    with torch.no_grad():
        whole, inputs = call.run(ops.gate)
        step = dataclasses.replace(
            call,
            hidden=call.hidden[:, 30:31],
            projected=call.projected[:, 30:31],
            past=gate_reference.Past(history=inputs[:, 24:30]),
        )
        assert torch.equal(step.run(ops.gate)[0], whole[:, 30:31])


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own
def test_torch_compile_sees_one_operator() -> None:
    call = make_call(GateCase(width=256, dtype=torch.bfloat16), "cuda")
    expected = call.gradients(ops.gate)
    compiled = torch.compile(ops.gate, fullgraph=True)
    for found, other in zip(call.gradients(compiled), expected, strict=True):
        assert far(found, other) < 1e-2


def test_a_graph_replays_on_new_inputs() -> None:
    call = make_call(GateCase(width=256), "cuda")
    call = dataclasses.replace(call, hidden=call.hidden.detach().clone())
    with torch.no_grad():
        call.run(ops.gate)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, _ = call.run(ops.gate)
        call.hidden.mul_(-2)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, call.run(ops.gate)[0])


def test_another_stream_and_another_thread_of_work() -> None:
    calls = [make_call(GateCase(width=512, streams=2), "cuda", seed=seed) for seed in (1, 2)]
    expected = [call.run(ops.gate)[0] for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    found = []
    for call, stream in zip(calls, streams, strict=True):
        with torch.cuda.stream(stream):
            found.append(call.run(ops.gate)[0])
    torch.cuda.synchronize()
    assert all(map(torch.equal, found, expected))

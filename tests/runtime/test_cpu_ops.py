"""The loops of calls on a CPU equal their plain twins: the hash to the bit, the gate nearly."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from lookup_cases import LAYOUTS, modulo_hash
from lookup_cases import the_hash as hash_on
from runtime.kernels.gate_cases import FORWARD_MODE, NEAR, GateCase, far, make_call
from torch import Tensor

from engram_cli.errors import TokenIdError
from engram_cli.runtime import cpu_ops, gate_reference, ops, reference
from engram_cli.runtime.reference import HashedCall, HashTensors

CASES = {
    "gate": GateCase(conv=False),
    "gate, padded, one stream": GateCase(conv=False, keep=True, streams=1, residual=False),
    "gate, centred": GateCase(conv=False, centred=True, width=33),
    "conv": GateCase(),
    "conv, padded": GateCase(keep=True),
    "conv, padded, without the sum": GateCase(keep=True, residual=False),
    "conv, packed, centred": GateCase(age=True, centred=True, residual=False),
    "conv, padded and packed": GateCase(age=True, keep=True, streams=1),
    "conv, with a history": GateCase(history=True, keep=True, age=True),
    "conv, with a history, one position": GateCase(history=True, count=1, batch=3),
    "conv, other taps": GateCase(taps=3, dilation=3, streams=3, count=5, width=17),
    "conv, one tap": GateCase(taps=1, streams=1),
    "conv, a tail": GateCase(tail=4),
    "conv, in threads": GateCase(batch=2, count=300, width=257, tail=70, keep=True, age=True),
    "gate, in threads": GateCase(batch=3, count=200, width=257, conv=False, keep=True),
}


CPU = torch.device("cpu")


def the_hash(name: str) -> HashTensors:
    return hash_on(name, CPU)


def same_call(found: HashedCall, expected: HashedCall) -> None:
    for name in ("tokens", "seen", "older", "rows"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("name", [n for n in LAYOUTS if not the_hash(n).summed])
@pytest.mark.parametrize("limits", ["none", "dead", "age", "both"])
def test_a_call_is_hashed_as_by_the_twin(name: str, limits: str) -> None:
    """Whole, then cut in two: the second part follows what the first left."""
    tensors = the_hash(name)
    generator = torch.Generator().manual_seed(len(name))
    ids = torch.randint(0, len(tensors.lookup), (3, 17), generator=generator)
    dead = torch.rand(3, 17, generator=generator) < 0.2 if limits in ("dead", "both") else None
    age = torch.arange(17).expand(3, -1) % 5 if limits in ("age", "both") else None
    assert cpu_ops.takes(ids, dead, age)
    recent = None
    for part in (slice(0, 6), slice(6, 7), slice(7, 17)):
        own = [None if x is None else x[:, part] for x in (dead, age)]
        found = cpu_ops.hash_call(tensors, ids[:, part], recent, *own)
        same_call(found, reference.hash_call(tensors, ids[:, part], recent, *own))
        left = torch.stack((found.tokens, found.seen), dim=-1)
        recent = left if recent is None else torch.cat((recent, left), dim=1)


def test_moduli_at_their_edges() -> None:
    tensors = modulo_hash(CPU)[0]
    ids = torch.arange(len(tensors.lookup))[None]
    found = cpu_ops.hash_call(tensors, ids, None, None, None)
    same_call(found, reference.hash_call(tensors, ids, None, None, None))


def with_hole(tensors: HashTensors, token: int) -> HashTensors:
    lookup = tensors.lookup.clone()
    lookup[token] = -1
    return replace(tensors, lookup=lookup)


def test_holes_are_walls_and_ids_beyond_are_refused() -> None:
    tensors = with_hole(the_hash("engram-v1"), 4)
    ids = torch.tensor([[1, 2, 4, 3, 3, 3, 4, 4, 1]])
    found = cpu_ops.hash_call(tensors, ids, None, None, None)
    same_call(found, reference.hash_call(tensors, ids, None, None, None))
    assert found.seen.tolist() == [[1, 2, 0, 1, 2, 3, 0, 0, 1]]
    size = len(tensors.lookup)
    for wrong in (size, -1, 2**40):
        for way in (cpu_ops.hash_call, reference.hash_call, ops.hash_call):
            with pytest.raises(TokenIdError, match=rf"outside 0\.\.{size - 1}"):
                way(tensors, torch.tensor([[1, wrong]]), None, None, None)


def test_ids_of_other_dtypes_and_strides() -> None:
    tensors = the_hash("qwen-ple")
    ids = torch.randint(0, len(tensors.lookup), (9, 4))
    expected = reference.hash_call(tensors, ids.t().contiguous(), None, None, None)
    same_call(cpu_ops.hash_call(tensors, ids.t(), None, None, None), expected)
    same_call(cpu_ops.hash_call(tensors, ids.int().t(), None, None, None), expected)
    empty = cpu_ops.hash_call(tensors, ids[:0], None, None, None)
    assert empty.rows is not None
    assert empty.rows.shape[1:3] == (0, 4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_gate_is_the_twins(case: GateCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    call = make_call(case)
    with torch.no_grad():
        assert cpu_ops.takes_gate(call.weights, call.hidden, call.projected, call.past)
        out, inputs = call.run(cpu_ops.gate)
        expected, kept = call.run(gate_reference.gate)
    assert far(out, expected) < 1e-6
    assert (inputs is None) == (kept is None) == (not case.conv)
    if inputs is not None and kept is not None:
        assert far(inputs, kept) < 1e-6
        assert inputs.untyped_storage().nbytes() == inputs.numel() * 4  # holds no others


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_halves(case: GateCase, dtype: torch.dtype) -> None:
    """They are rounded where the twin rounds them, and may fall on the other side."""
    call = make_call(replace(case, dtype=dtype))
    with torch.no_grad():
        assert cpu_ops.takes_gate(call.weights, call.hidden, call.projected, call.past)
        out, inputs = call.run(cpu_ops.gate)
        expected, kept = call.run(gate_reference.gate)
        exact, _ = call.wider().run(gate_reference.gate)
    assert far(out, expected) < NEAR[dtype]
    assert far(out.double(), exact) < 1.05 * far(expected.double(), exact)
    assert (inputs is None) == (kept is None) == (not case.conv)
    if inputs is not None and kept is not None:
        assert far(inputs, kept) < NEAR[dtype]


@pytest.mark.parametrize("count", [2, 4096])
def test_one_token_or_many_give_the_same_bits(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does any number of threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    case = GateCase(batch=1, count=count, streams=1, width=64, taps=2, dilation=1)
    call = make_call(case)
    with torch.no_grad():
        whole, _ = call.run(cpu_ops.gate)
        last = replace(
            call,
            hidden=call.hidden[:, -2:],
            projected=call.projected[:, -2:],
            gradient=call.gradient,
        )
        part, _ = last.run(cpu_ops.gate)
    assert torch.equal(part[:, -1], whole[:, -1])


def test_values_at_the_edges() -> None:
    """Gates that are closed, open, cut off or NaN; a SiLU far below and above 0."""
    case = GateCase(batch=1, count=6, streams=1, width=8, taps=1, residual=False)
    call = make_call(case)
    with torch.no_grad():
        for place, factor in enumerate((0.0, 1e-30, 1e-4, 1e4, 3e18, float("nan"))):
            call.hidden[:, place] *= factor
        call.weights.norm.copy_(torch.linspace(-1, 1, 8)[None])  # type: ignore[union-attr]
        call.weights.taps.fill_(150.0)  # type: ignore[union-attr]
        out, _ = call.run(cpu_ops.gate)
        expected, _ = call.run(gate_reference.gate)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_exponential_is_exact_to_two_units_in_the_last_place() -> None:
    from engram_cli.runtime import cpu_kernels

    x = torch.cat((torch.linspace(-87, 88, 4001), torch.randn(1000) * 1e-3))
    found = torch.tensor([cpu_kernels._exp(value) for value in x.numpy()], dtype=torch.float32)
    exact = x.double().exp()
    assert float(((found.double() - exact) / exact).abs().max()) < 2 * 2.0**-23


@FORWARD_MODE
def test_what_the_loops_do_not_take() -> None:
    call = make_call(GateCase())
    given = (call.weights, call.hidden, call.projected, call.past)
    assert not cpu_ops.takes_gate(*given)  # it wants a gradient
    with torch.no_grad():
        assert cpu_ops.takes_gate(*given)
        wide = call.wider()
        assert not cpu_ops.takes_gate(wide.weights, wide.hidden, wide.projected, wide.past)

    class Watched(Tensor):
        pass

    ids = torch.zeros(1, 2, dtype=torch.int64)
    assert cpu_ops.takes(ids)
    assert not cpu_ops.takes(ids.as_subclass(Watched))
    assert not cpu_ops.takes(ids.to("meta"))
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        seen.append(cpu_ops.takes(x))
        return x * 2

    torch.func.jvp(function, (torch.ones(2),), (torch.ones(2),))
    torch.compile(function, backend="eager")(torch.ones(2))
    assert seen[:1] == [False]
    assert not any(seen)


def test_the_operations_take_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def noted(name: str) -> Any:
        inner = getattr(cpu_ops, name)
        return lambda *given, **options: (called.append(name), inner(*given, **options))[1]

    for name in ("hash_call", "gate"):
        monkeypatch.setattr(cpu_ops, name, noted(name))
    call = make_call(GateCase())
    with torch.no_grad():
        call.run(ops.gate)
        ops.hash_call(the_hash("engram-v1"), torch.ones(1, 2, dtype=torch.int64), None, None, None)
    assert called == ["gate", "hash_call"]


def test_without_a_compiler_the_twins_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    import engram_cli.runtime

    ids = torch.ones(1, 2, dtype=torch.int64)
    assert cpu_ops.takes(ids)
    monkeypatch.delattr(engram_cli.runtime, "cpu_kernels")
    monkeypatch.delitem(sys.modules, "engram_cli.runtime.cpu_kernels")
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    cpu_ops._kernels.cache_clear()
    try:
        assert not cpu_ops.takes(ids)
        tensors = the_hash("engram-v1")
        expected = reference.hash_call(tensors, ids, None, None, None)
        same_call(ops.hash_call(tensors, ids, None, None, None), expected)
    finally:
        cpu_ops._kernels.cache_clear()

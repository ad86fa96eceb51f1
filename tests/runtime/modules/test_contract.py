"""What every registered module keeps to, with one stream and with three."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runtime.modules.inputs import Build, some_input
from tiny_models import ALL_MODULES as TESTED
from torch import Tensor

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.module_spec import MODULE_KINDS
from engram_cli.runtime.modules import MODULES
from engram_cli.runtime.modules.base import TABLE, dense_state, load_dense


def test_every_module_is_tested() -> None:
    # LongCat's is a mean of embeddings, tested by itself: it has no gate and no identity.
    assert tuple(MODULES) == tuple(MODULE_KINDS) == (*TESTED, "longcat")
    with pytest.raises(InputError, match="unknown module 'other'"):
        MODULES.load("other")


def test_weights_are_those_of_the_spec(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    assert {n: tuple(v.shape) for n, v in dense_state(found).items()} == spec.dense_shapes
    names = set(found.state_dict()) - set(spec.dense_shapes)
    assert names == {TABLE, "multi_head_embedding.offsets"}
    offsets = spec.layout.layer(spec.layers[0]).offsets
    assert found.multi_head_embedding.offsets.tolist() == list(offsets)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_fresh_module_adds_nothing(spec: BundleSpec, build: Build, dtype: torch.dtype) -> None:
    hidden, rows = some_input(spec)
    out, _ = build(spec, dtype, awake=False)(hidden.to(dtype), rows)
    assert out.shape == hidden.shape
    assert not out.any()


def test_streams_may_lie_side_by_side(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    out, _ = found(hidden.flatten(2), rows)
    assert torch.equal(out, found(hidden, rows)[0].flatten(2))


def test_history_continues_a_stream(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    whole, inputs = found(hidden, rows)
    assert whole.abs().max() > 0.1
    history = None
    if inputs is not None:
        history = F.pad(inputs, (0, 0, found.reach, 0))[:, 6 : 6 + found.reach]
    tail, _ = found(hidden[:, 6:], rows[:, 6:], None, history)
    torch.testing.assert_close(tail, whole[:, 6:], atol=1e-6, rtol=1e-6)


def test_padding_gets_nothing_and_feeds_nothing(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    keep = torch.ones(2, 14, dtype=torch.bool)
    keep[1, :5] = False
    hidden[1, :5] = float("nan")  # what attention may leave at a position that sees nothing
    out, inputs = found(hidden, rows, keep)
    assert not out[1, :5].any()
    assert inputs is None or not inputs[1, :5].any()
    alone, _ = found(hidden[1:, 5:], rows[1:, 5:])
    torch.testing.assert_close(out[1:, 5:], alone, atol=1e-6, rtol=1e-6)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in found.parameters())


def test_documents_packed_into_a_line_stay_apart(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    age = torch.cat((torch.arange(4), torch.arange(10))).expand(2, -1)
    packed, inputs = found(hidden, rows, None, None, age)
    apart = [found(hidden[:, :4], rows[:, :4])[0], found(hidden[:, 4:], rows[:, 4:])[0]]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), atol=1e-6, rtol=1e-6)
    one_line = found(hidden, rows)[0]
    assert torch.equal(one_line, packed) == (inputs is None)
    plain = found(hidden, rows, None, None, torch.arange(14).expand(2, -1))[0]
    torch.testing.assert_close(plain, one_line, atol=1e-6, rtol=1e-6)


def test_gates_lie_between_0_and_1_and_open_the_value(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    gates = found.gates(hidden, found.vectors(rows))
    assert gates.shape == (2, 14, spec.module.streams, 1)
    assert gates.min() > 0.05
    assert gates.max() < 0.95
    assert gates.std() > 0.05


def test_gradients_are_those_of_finite_differences(spec: BundleSpec, build: Build) -> None:
    found = build(spec).double()
    hidden, rows = some_input(spec)
    hidden = hidden[:1, :6].double().requires_grad_()
    rows = rows[:1, :6]
    names, values = zip(*found.named_parameters(), strict=True)

    def run(hidden: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(found, weights, (hidden, rows))[0]

    assert torch.autograd.gradcheck(run, (hidden, *values), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_the_whole(
    spec: BundleSpec, build: Build, dtype: torch.dtype
) -> None:
    found = build(spec, dtype)
    assert found.multi_head_embedding.embedding.weight.dtype == torch.float32
    hidden, rows = some_input(spec)
    out, _ = found(hidden.to(dtype), rows)
    expected, _ = found.float()(hidden.to(dtype).float(), rows)
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_dense_weights_of_another_shape_are_refused(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    weights = dense_state(found)
    load_dense(found, weights)
    name = min(weights)
    for bad in (
        {k: v for k, v in weights.items() if k != name},
        weights | {name: torch.zeros(3)},
        weights | {"alien": torch.zeros(3)},
    ):
        with pytest.raises(ArtifactError):
            load_dense(found, bad)

"""engram-v1's module against its arithmetic written out plainly (docs/reference/modules.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import make_bundle, make_layout, make_spec, wake
from torch import Tensor

from engram_cli.errors import ArtifactError
from engram_cli.formats.bundle import BundleSpec, read_bundle
from engram_cli.runtime.load import module as load_module
from engram_cli.runtime.module import EngramV1, load_dense
from engram_cli.vocab.compress import CompressedVocab

CPU = torch.device("cpu")


def plain_engram(weights: dict[str, Tensor], hidden: Tensor, rows: Tensor, dilation: int) -> Tensor:
    """The demo's sums, position by position and tap by tap; hidden [B, T, hc, d]."""
    batch, count, streams, d = hidden.shape
    table = weights["multi_head_embedding.embedding.weight"]
    e = torch.stack(
        [torch.cat([table[r] for r in rows[b, t]]) for b in range(batch) for t in range(count)]
    )
    e = e.view(batch, count, -1)
    value = F.linear(e, weights["value_proj.weight"], weights["value_proj.bias"])
    gated = []
    for c in range(streams):
        key = F.linear(e, weights[f"key_projs.{c}.weight"], weights[f"key_projs.{c}.bias"])
        key = key / (key.pow(2).mean(-1, keepdim=True) + torch.finfo(key.dtype).eps).sqrt()
        query = hidden[:, :, c]
        query = query / (query.pow(2).mean(-1, keepdim=True) + torch.finfo(key.dtype).eps).sqrt()
        product = key * weights[f"norm1.{c}.weight"] * query * weights[f"norm2.{c}.weight"]
        dot = product.sum(-1) / d**0.5
        gate = torch.sigmoid(dot.sign() * dot.abs().clamp(min=1e-6).sqrt())
        gated.append(gate[..., None] * value)
    normed = [
        v
        / (v.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        * weights[f"short_conv.norms.{c}.weight"]
        for c, v in enumerate(gated)
    ]
    taps = weights["short_conv.conv.weight"].view(streams, d, -1)
    out = []
    for c in range(streams):
        convolved = torch.zeros_like(gated[c])
        for t in range(count):
            for k in range(taps.shape[-1]):
                back = (taps.shape[-1] - 1 - k) * dilation
                if t - back >= 0:
                    convolved[:, t] += taps[c, :, k] * normed[c][:, t - back]
        out.append(gated[c] + convolved * torch.sigmoid(convolved))
    return torch.stack(out, dim=2)


@pytest.fixture(params=[1, 3])
def spec(request: pytest.FixtureRequest, small_vocab: CompressedVocab) -> BundleSpec:
    return make_spec(make_layout(small_vocab), streams=request.param)


def built(path: Path, spec: BundleSpec, dtype: torch.dtype = torch.float32) -> EngramV1:
    bundle = read_bundle(make_bundle(path / "engram", spec))
    found = load_module(
        bundle, 1, device=CPU, dtype=dtype, rows_device=CPU, trainable=True, sparse=False
    )
    wake(found)
    return found


def some_input(spec: BundleSpec) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (2, 14, spec.streams, spec.hidden_size)
    rows = torch.randint(0, spec.rows(1), (2, 14, spec.layout.columns), generator=generator)
    return torch.randn(shape, generator=generator), rows


def test_it_is_the_demos_arithmetic(spec: BundleSpec, tmp_path: Path) -> None:
    found = built(tmp_path, spec)
    hidden, rows = some_input(spec)
    expected = plain_engram(found.state_dict(), hidden, rows, dilation=spec.conv_dilation)
    out, _ = found(hidden, rows)
    assert out.abs().max() > 0.1
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_names_are_the_demos(spec: BundleSpec, tmp_path: Path) -> None:
    names = {"multi_head_embedding.embedding.weight", "multi_head_embedding.offsets"}
    names |= {"value_proj.weight", "value_proj.bias", "short_conv.conv.weight"}
    for c in range(spec.streams):
        names |= {f"key_projs.{c}.weight", f"key_projs.{c}.bias"}
        names |= {f"norm1.{c}.weight", f"norm2.{c}.weight", f"short_conv.norms.{c}.weight"}
    found = built(tmp_path, spec)
    assert set(found.state_dict()) == names
    assert found.multi_head_embedding.offsets.tolist() == list(spec.layout.layer(1).offsets)


def test_history_continues_a_stream(spec: BundleSpec, tmp_path: Path) -> None:
    found = built(tmp_path, spec)
    hidden, rows = some_input(spec)
    whole, inputs = found(hidden, rows)
    history = inputs[:, 6 - found.reach : 6] if found.reach <= 6 else None
    if history is None:
        history = F.pad(inputs[:, :6], (0, 0, found.reach - 6, 0))
    tail, _ = found(hidden[:, 6:], rows[:, 6:], None, history)
    torch.testing.assert_close(tail, whole[:, 6:], atol=1e-6, rtol=1e-6)


def test_padding_gets_nothing_and_feeds_nothing(spec: BundleSpec, tmp_path: Path) -> None:
    found = built(tmp_path, spec)
    hidden, rows = some_input(spec)
    keep = torch.ones(2, 14, dtype=torch.bool)
    keep[1, :5] = False
    hidden[1, :5] = float("nan")  # what attention may leave at a position that sees nothing
    out, inputs = found(hidden, rows, keep)
    assert not out[1, :5].any()
    assert not inputs[1, :5].any()
    alone, _ = found(hidden[1:, 5:], rows[1:, 5:])
    torch.testing.assert_close(out[1:, 5:], alone, atol=1e-6, rtol=1e-6)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in found.parameters())


def test_gradients_are_those_of_finite_differences(spec: BundleSpec, tmp_path: Path) -> None:
    found = built(tmp_path, spec).double()
    hidden, rows = some_input(spec)
    hidden = hidden[:1, :6].double().requires_grad_()
    rows = rows[:1, :6]
    names, values = zip(*found.named_parameters(), strict=True)

    def run(hidden: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(found, weights, (hidden, rows))[0]

    assert torch.autograd.gradcheck(run, (hidden, *values), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(spec: BundleSpec, tmp_path: Path, dtype: torch.dtype) -> None:
    found = built(tmp_path, spec, dtype)
    assert found.multi_head_embedding.embedding.weight.dtype == torch.float32
    hidden, rows = some_input(spec)
    out, _ = found(hidden.to(dtype), rows)
    assert out.dtype == dtype
    weights = {name: value.float() for name, value in found.state_dict().items()}
    expected = plain_engram(weights, hidden.to(dtype).float(), rows, spec.conv_dilation)
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_dense_weights_of_another_shape_are_refused(spec: BundleSpec, tmp_path: Path) -> None:
    found = built(tmp_path, spec)
    weights = {k: v for k, v in found.state_dict().items() if not k.startswith("multi_head")}
    load_dense(found, weights)
    for bad in (
        {k: v for k, v in weights.items() if k != "value_proj.bias"},
        weights | {"value_proj.bias": torch.zeros(3)},
        weights | {"alien": torch.zeros(3)},
    ):
        with pytest.raises(ArtifactError):
            load_dense(found, bad)

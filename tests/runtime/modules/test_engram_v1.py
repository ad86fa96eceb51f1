"""engram-v1 against the demo's sums, position by position and tap by tap."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runtime.modules.inputs import Build, some_input
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec


@pytest.fixture
def kind() -> str:
    return "engram-v1"


def plain(weights: dict[str, Tensor], hidden: Tensor, rows: Tensor, dilation: int) -> Tensor:
    """docs/reference/modules.md written out; hidden [B, T, hc, d]."""
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


def test_it_is_the_demos_arithmetic(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    expected = plain(found.state_dict(), hidden, rows, dilation=spec.conv_dilation)
    out, _ = found(hidden, rows)
    assert out.abs().max() > 0.1
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_names_are_the_demos(spec: BundleSpec) -> None:
    names = {"value_proj.weight", "value_proj.bias", "short_conv.conv.weight"}
    for c in range(spec.module.streams):
        names |= {f"key_projs.{c}.weight", f"key_projs.{c}.bias"}
        names |= {f"norm1.{c}.weight", f"norm2.{c}.weight", f"short_conv.norms.{c}.weight"}
    assert set(spec.dense_shapes) == names

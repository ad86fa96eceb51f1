"""engram-peft's module against its arithmetic written out: copies of one stream, summed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runtime.modules.inputs import Build, some_input
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec


@pytest.fixture
def kind() -> str:
    return "engram-peft"


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def test_the_copies_are_summed(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    hidden = hidden.flatten(2)
    weights = found.state_dict()
    vectors = found.multi_head_embedding(rows)
    value = vectors @ weights["gating.w_v.weight"].T
    total, eps, dilation = torch.zeros_like(hidden), torch.finfo(torch.float32).eps, 3
    for copy in range(spec.module.streams):
        key = vectors @ weights[f"gating.w_k.{copy}.weight"].T
        key = rms(key, weights[f"gating.norm_k.{copy}.weight"], eps)
        query = rms(hidden, weights[f"gating.norm_h.{copy}.weight"], eps)
        dot = (key * query).sum(-1, keepdim=True) / 32**0.5
        gated = (dot.abs().clamp_min(1e-6).sqrt() * dot.sign()).sigmoid() * value
        normed = rms(gated, weights[f"short_conv.norms.{copy}.weight"], 1e-5)
        taps = weights["short_conv.conv.weight"][copy * 32 : (copy + 1) * 32]
        padded = F.pad(normed.transpose(1, 2), (3 * dilation, 0))
        mixed = F.silu(F.conv1d(padded, taps, dilation=dilation, groups=32)).transpose(1, 2)
        total = total + gated + mixed
    out, _ = found(hidden, rows)
    torch.testing.assert_close(out, total, atol=1e-5, rtol=1e-5)
    summed, _ = found(hidden, rows, residual=True)
    torch.testing.assert_close(summed, hidden + total, atol=1e-5, rtol=1e-5)

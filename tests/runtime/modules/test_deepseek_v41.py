"""deepseek-v4.1 against its sums in float64, and its roundings in bfloat16."""

from __future__ import annotations

import pytest
import torch
from runtime.modules.inputs import Build, some_input
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec


@pytest.fixture
def kind() -> str:
    return "deepseek-v4.1"


def plain(weights: dict[str, Tensor], hidden: Tensor, rows: Tensor, eps: float) -> Tensor:
    """docs/reference/modules.md written out for each position and stream; hidden [B, T, hc, d]."""
    batch, count, streams, d = hidden.shape
    table = weights["multi_head_embedding.embedding.weight"]
    out = torch.empty_like(hidden)
    for b in range(batch):
        for t in range(count):
            kv = weights["wkv.weight"] @ table[rows[b, t]].reshape(-1)
            value = kv[streams * d :]
            for c in range(streams):
                key, query = kv[c * d : (c + 1) * d], hidden[b, t, c]
                key = key / (key.square().mean() + eps).sqrt() * weights["k_weight"][c]
                query = query / (query.square().mean() + eps).sqrt() * weights["q_weight"][c]
                dot = key @ query / d**0.5
                gate = torch.sigmoid(dot.sign() * max(dot.abs(), torch.tensor(1e-6)).sqrt())
                out[b, t, c] = gate * value
    return out


def test_it_is_the_arithmetic(spec: BundleSpec, build: Build) -> None:
    found = build(spec)
    hidden, rows = some_input(spec)
    weights = {name: value.double() for name, value in found.state_dict().items()}
    expected = plain(weights, hidden.double(), rows, found.eps)
    out, inputs = found(hidden, rows)
    assert inputs is None
    assert found.reach == 0
    assert out.abs().max() > 0.1
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)


def test_in_bfloat16_the_gate_and_the_sum_are_float32(spec: BundleSpec, build: Build) -> None:
    found = build(spec, torch.bfloat16)
    hidden, rows = some_input(spec)
    hidden = hidden.bfloat16()
    out, _ = found(hidden, rows)
    assert out.dtype == torch.float32
    projected = found.wkv(found.vectors(rows)).float()  # rounded to bfloat16, as a fused kernel's
    streams, d = spec.module.streams, spec.hidden_size
    keys, value = projected[..., : streams * d], projected[..., streams * d :]

    def normed(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + found.eps).sqrt()

    key = normed(keys.unflatten(-1, (streams, d))) * found.k_weight.float()
    query = normed(hidden.float()) * found.q_weight.float()
    dot = (key * query).sum(-1, keepdim=True) / d**0.5
    gate = torch.sigmoid(dot.sign() * dot.abs().clamp(min=1e-6).sqrt())
    torch.testing.assert_close(out, gate * value.unsqueeze(2), atol=1e-5, rtol=1e-5)

"""The module of the package engram-peft (1.2.7): engram-v1's arithmetic for copies of one stream.

Each copy of the hidden state has a key, a gate and a convolution of its own; what they add is
summed. The names are those of the package's adapters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.gate_reference import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding, Weight
from engram_cli.runtime.modules.engram_v1 import CONV_NORM_EPS, NormedConv, stacked


class Gating(nn.Module):
    """The projections and norms: `w_v` the shared value, `w_k` a key for each copy."""

    def __init__(self, hidden_size: int, embed_dim: int, copies: int) -> None:
        super().__init__()
        self.w_v = nn.Linear(embed_dim, hidden_size, bias=False)
        self.w_k = nn.ModuleList(
            nn.Linear(embed_dim, hidden_size, bias=False) for _ in range(copies)
        )
        self.norm_k = nn.ModuleList(Weight(hidden_size) for _ in range(copies))
        self.norm_h = nn.ModuleList(Weight(hidden_size) for _ in range(copies))


class EngramPeft(MemoryModule):
    """The copies are made here: the hidden states have one stream."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        kernel, dilation = spec.module.conv_kernel, spec.conv_dilation
        self.gating = Gating(spec.hidden_size, spec.embed_dim, self.streams)
        self.short_conv = NormedConv(spec.hidden_size, self.streams, kernel, dilation)
        self.reach = (kernel - 1) * dilation

    @property
    def anchor(self) -> Tensor:
        """The weight of the hidden state's first norm."""
        weight: Tensor = self.gating.norm_h[0]()
        return weight

    def linears(self) -> list[nn.Module]:
        """Return the layers of the keys, then that of the value."""
        return [*self.gating.w_k, self.gating.w_v]

    def gate_weights(self) -> GateWeights:
        """Return norms with torch's eps, float32's, and the convolution's own."""
        query = stacked(self.gating.norm_h)
        return GateWeights(
            query=query,
            key=stacked(self.gating.norm_k),
            norm=stacked(self.short_conv.norms),
            taps=self.short_conv.conv(),
            eps=torch.finfo(torch.promote_types(query.dtype, torch.float32)).eps,
            norm_eps=CONV_NORM_EPS,
            dilation=self.short_conv.dilation,
        )

    def added_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return float32: the copies' additions are summed before they are rounded."""
        return torch.promote_types(hidden.dtype, torch.float32)

    def copies(self, hidden: Tensor) -> Tensor:
        """Return [B, T, copies, d] of hidden states [B, T, d] or [B, T, 1, d]."""
        return hidden.flatten(2).unsqueeze(2).expand(-1, -1, self.streams, -1)

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """Return [B, T, copies, 1] in 0..1, float32; `hidden` [B, T, 1, d]."""
        return super().gates(self.copies(hidden), vectors)

    def forward(
        self,
        hidden: Tensor,
        rows: Tensor,
        keep: Tensor | None = None,
        history: Tensor | None = None,
        age: Tensor | None = None,
        *,
        residual: bool = False,
        tail: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `MemoryModule.forward` does, for `hidden` [B, T, d] or [B, T, 1, d]."""
        copies = self.copies(hidden)
        added, inputs = super().forward(copies, rows, keep, history, age, tail=tail)
        total = added.sum(2).reshape(hidden.shape)
        return (hidden + total if residual else total).to(hidden.dtype), inputs

"""LongCat's module: the mean of a token's embedding and of its projected n-grams.

It belongs before the first decoder layer, where the hidden states are the embeddings. There is
neither a gate nor a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.gate_reference import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding


class LongCat(MemoryModule):
    """`post_proj` [d, E]: the published projections of all columns, side by side."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        self.post_proj = nn.Linear(spec.embed_dim, spec.hidden_size, bias=False)
        self.terms = 1 + spec.layout.columns  # of the mean

    @property
    def anchor(self) -> Tensor:
        """The weight of the projection: there is no norm."""
        weight: Tensor = self.post_proj.weight
        return weight

    def linears(self) -> list[nn.Module]:
        """Return the one layer that sums the projected n-grams, [B, T, d]."""
        return [self.post_proj]

    def gate_weights(self) -> GateWeights:
        """Raise NotImplementedError: nothing is gated."""
        raise NotImplementedError("LongCat's module has no gate")

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """Return ones [B, T, 1, 1]: every n-gram has the same share."""
        return torch.ones(*hidden.shape[:2], 1, 1, device=hidden.device)

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
        """Return what `MemoryModule.forward` does, for embeddings `hidden` [B, T, d]."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        projected = self.project(self.vectors(rows)).to(hidden.device, wide)
        states = hidden.to(wide)
        mean = (states + projected.reshape(hidden.shape)) / self.terms
        if keep is not None:
            real = keep.to(hidden.device).reshape(*keep.shape, *[1] * (hidden.ndim - 2))
            mean = torch.where(real, mean, states)
        out = mean if residual else mean - states
        return out.to(hidden.dtype), None

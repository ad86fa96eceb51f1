"""DeepSeek-V4.1's module: fused keys and value, a gate in float32, no convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle import BundleSpec
from engram_cli.runtime.modules.base import (
    MemoryModule,
    MultiHeadEmbedding,
    mean_square_normed,
    open_gate,
)


class DeepSeekV41(MemoryModule):
    """`wkv` [streams x d + d, E]: a key for each stream, then the value that they share."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        d, streams = spec.hidden_size, self.streams
        assert spec.module.norm_eps is not None
        self.eps = spec.module.norm_eps
        self.wkv = nn.Linear(spec.embed_dim, streams * d + d, bias=False)
        self.q_weight = nn.Parameter(torch.empty(streams, d))
        self.k_weight = nn.Parameter(torch.empty(streams, d))

    @property
    def anchor(self) -> Tensor:
        """A dense weight whose device and dtype are the module's."""
        return self.wkv.weight

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """[B, T, streams, 1] in 0..1, float32."""
        return self._gates(hidden, self.wkv(vectors))

    def _gates(self, hidden: Tensor, projected: Tensor) -> Tensor:
        keys = projected[..., : self.k_weight.numel()]
        keys = keys.reshape(*keys.shape[:-1], *self.k_weight.shape)
        query = mean_square_normed(hidden, self.eps) * self.q_weight
        key = mean_square_normed(keys, self.eps) * self.k_weight
        return open_gate((query * key).sum(dim=-1, keepdim=True) * self.scale)

    def forward(
        self,
        hidden: Tensor,
        rows: Tensor,
        keep: Tensor | None = None,
        history: Tensor | None = None,
        age: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """The addition in float32, rounded once with the sum; see `MemoryModule.forward`."""
        keep = self.home(keep)
        projected = self.wkv(self.vectors(rows))
        gate = self._gates(self.split(hidden, keep), projected)
        out = gate * projected[..., self.k_weight.numel() :].unsqueeze(2)
        if keep is not None:
            out = out.masked_fill(~keep[:, :, None, None], 0)
        return out.reshape(hidden.shape).to(hidden.device), None

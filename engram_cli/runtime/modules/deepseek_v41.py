"""DeepSeek-V4.1's module: fused keys and value, a gate in float32, no convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.gate_reference import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding


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
        """The weight of the hidden state's norm."""
        return self.q_weight

    def linears(self) -> list[nn.Module]:
        """Return the one layer of all keys and the value."""
        return [self.wkv]

    def gate_weights(self) -> GateWeights:
        """Return plain norm weights; there is no convolution."""
        return GateWeights(query=self.q_weight, key=self.k_weight, eps=self.eps)

    def added_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return float32: the sum is rounded once, wherever it is made."""
        return torch.promote_types(hidden.dtype, torch.float32)

"""engram-v1's module, the paper's demo: a gated value and its short convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.gate_reference import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding, Weight

CONV_NORM_EPS = 1e-5
_EPS, _EPS_WIDE = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))


class NormedConv(nn.Module):
    """The weights of the short convolution, and of the RMS norm for each stream before it."""

    def __init__(self, hidden_size: int, streams: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = Weight(streams * hidden_size, 1, kernel)
        self.norms = nn.ModuleList(Weight(hidden_size) for _ in range(streams))
        self.dilation = dilation


class EngramV1(MemoryModule):
    """One key a stream, a shared value, torch's RMS norms with their default eps."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        d, embed, streams = spec.hidden_size, spec.embed_dim, self.streams
        kernel, dilation = spec.module.conv_kernel, spec.conv_dilation
        self.short_conv = NormedConv(d, streams, kernel, dilation)
        self.reach = (kernel - 1) * dilation
        self.value_proj = nn.Linear(embed, d)
        self.key_projs = nn.ModuleList(nn.Linear(embed, d) for _ in range(streams))
        self.norm1 = nn.ModuleList(Weight(d) for _ in range(streams))
        self.norm2 = nn.ModuleList(Weight(d) for _ in range(streams))

    @property
    def anchor(self) -> Tensor:
        """The weight of the hidden state's first norm."""
        weight: Tensor = self.norm2[0]()
        return weight

    def linears(self) -> list[nn.Module]:
        """Return the layers of the keys, then that of the value."""
        return [*self.key_projs, self.value_proj]

    def gate_weights(self) -> GateWeights:
        """`norm1` is the key's, `norm2` the hidden state's; torch's eps is float32's."""
        query = stacked(self.norm2)
        return GateWeights(
            query=query,
            key=stacked(self.norm1),
            norm=stacked(self.short_conv.norms),
            taps=self.short_conv.conv(),
            eps=_EPS_WIDE if query.dtype == torch.float64 else _EPS,
            norm_eps=CONV_NORM_EPS,
            dilation=self.short_conv.dilation,
        )


def stacked(norms: nn.ModuleList) -> Tensor:
    """Return [streams, d]: the weights of norms."""
    weights: list[Tensor] = [norm() for norm in norms]
    return weights[0][None] if len(weights) == 1 else torch.stack(weights)

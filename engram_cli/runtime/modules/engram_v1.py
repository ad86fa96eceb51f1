"""engram-v1's module, the paper's demo: a gated value and its short convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle import BundleSpec
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding, ShortConv, open_gate

CONV_NORM_EPS = 1e-5


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the dtype of its weight where autocast hands it another."""

    def forward(self, x: Tensor) -> Tensor:
        """RMS-normalised `x` [..., d]."""
        return super().forward(x.to(self.weight.dtype))


class NormedConv(ShortConv):
    """The short convolution with an RMS norm for each stream before it."""

    def __init__(self, hidden_size: int, streams: int, kernel: int, dilation: int) -> None:
        super().__init__(streams * hidden_size, kernel, dilation)
        self.norms = nn.ModuleList(RMSNorm(hidden_size, eps=CONV_NORM_EPS) for _ in range(streams))

    def inputs(self, value: Tensor) -> Tensor:
        """[B, T, streams x d]: what is convolved, of gated values [B, T, streams, d]."""
        normed = [norm(value[:, :, stream]) for stream, norm in enumerate(self.norms)]
        return normed[0] if len(normed) == 1 else torch.cat(normed, dim=-1)


class EngramV1(MemoryModule):
    """One key a stream, a shared value, torch's RMS norms with their default eps."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        d, embed, streams = spec.hidden_size, spec.embed_dim, self.streams
        self.short_conv = NormedConv(d, streams, spec.module.conv_kernel, spec.conv_dilation)
        self.value_proj = nn.Linear(embed, d)
        self.key_projs = nn.ModuleList(nn.Linear(embed, d) for _ in range(streams))
        self.norm1 = nn.ModuleList(RMSNorm(d) for _ in range(streams))
        self.norm2 = nn.ModuleList(RMSNorm(d) for _ in range(streams))

    @property
    def reach(self) -> int:
        """How many earlier positions the convolution reads."""
        return self.short_conv.reach

    @property
    def anchor(self) -> Tensor:
        """A dense weight whose device and dtype are the module's."""
        return self.value_proj.weight

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """[B, T, streams, 1] in 0..1: how far each stream [B, T, streams, d] lets the value in."""
        found = []
        for stream in range(self.streams):
            key = self.norm1[stream](self.key_projs[stream](vectors))
            query = self.norm2[stream](hidden[:, :, stream])
            found.append(open_gate((key * query).sum(dim=-1) * self.scale))
        return torch.stack(found, dim=2).unsqueeze(-1)

    def forward(
        self,
        hidden: Tensor,
        rows: Tensor,
        keep: Tensor | None = None,
        history: Tensor | None = None,
        age: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The addition in `hidden`'s dtype; see `MemoryModule.forward`."""
        keep, vectors = self.home(keep), self.vectors(rows)
        value = self.gates(self.split(hidden, keep), vectors)
        value = value * self.value_proj(vectors).unsqueeze(2)
        inputs = self.short_conv.inputs(value)
        if keep is not None:
            inputs = inputs.masked_fill(~keep[:, :, None], 0)
        out = value.flatten(2) + self.short_conv(inputs, history, age)
        if keep is not None:
            out = out.masked_fill(~keep[:, :, None], 0)
        return out.reshape(hidden.shape).to(hidden.device, hidden.dtype), inputs

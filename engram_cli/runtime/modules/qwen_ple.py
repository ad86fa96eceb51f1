"""qwen-ple's module, the n-gram layer of Qwen4-Exp: centred norms, no biases, a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle import BundleSpec
from engram_cli.runtime.modules.base import (
    MemoryModule,
    MultiHeadEmbedding,
    depthwise,
    mean_square_normed,
    open_gate,
    short_conv,
)


class CentredNorm(nn.Module):
    """RMS norm of each stream of [..., streams x d], its weight stored less one; in float32."""

    def __init__(self, streams: int, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(streams * hidden_size))
        self.streams, self.eps = streams, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised streams [B, T, streams, d], of their dtype."""
        weight = (1 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))).view(
            self.streams, -1
        )
        return (mean_square_normed(x, self.eps) * weight).to(x.dtype)


class QwenPLE(MemoryModule):
    """`key_proj` [streams x d, E] a key for each stream, `value_proj` [d, E] the shared value."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        d, embed, streams = spec.hidden_size, spec.embed_dim, self.streams
        eps = spec.module.norm_eps
        assert eps is not None
        self.key_proj = nn.Linear(embed, streams * d, bias=False)
        self.value_proj = nn.Linear(embed, d, bias=False)
        self.norm_key = CentredNorm(streams, d, eps)
        self.norm_query = CentredNorm(streams, d, eps)
        self.norm_conv = CentredNorm(streams, d, eps)
        self.conv1d = depthwise(streams * d, spec.module.conv_kernel, spec.conv_dilation)
        self.dilation = spec.conv_dilation

    @property
    def reach(self) -> int:
        """How many earlier positions the convolution reads."""
        return (self.conv1d.weight.shape[-1] - 1) * self.dilation

    @property
    def anchor(self) -> Tensor:
        """A dense weight whose device and dtype are the module's."""
        return self.value_proj.weight

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """[B, T, streams, 1] in 0..1: how far each stream [B, T, streams, d] lets the value in."""
        key = self.norm_key(self.key_proj(vectors).unflatten(-1, (self.streams, -1)))
        dot = (key * self.norm_query(hidden)).sum(dim=-1, keepdim=True) * self.scale
        return open_gate(dot)

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
        inputs = self.norm_conv(value).flatten(2)
        if keep is not None:
            inputs = inputs.masked_fill(~keep[:, :, None], 0)
        convolved = short_conv(self.conv1d.weight, self.dilation, inputs, history, age)
        out = value.flatten(2) + convolved
        if keep is not None:
            out = out.masked_fill(~keep[:, :, None], 0)
        return out.reshape(hidden.shape).to(hidden.device, hidden.dtype), inputs

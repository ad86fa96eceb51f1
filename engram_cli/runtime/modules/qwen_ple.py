"""qwen-ple's module, the n-gram layer of Qwen4-Exp: centred norms, no biases, a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.gating import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding, depthwise, project


class CentredNorm(nn.Module):
    """The weight of an RMS norm of each stream, [streams x d], stored less one."""

    def __init__(self, streams: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(streams * hidden_size))
        self.streams = streams

    def by_stream(self) -> Tensor:
        """[streams, d]."""
        return self.weight.view(self.streams, -1)


class QwenPLE(MemoryModule):
    """`key_proj` [streams x d, E] a key for each stream, `value_proj` [d, E] the shared value."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        d, embed, streams = spec.hidden_size, spec.embed_dim, self.streams
        assert spec.module.norm_eps is not None
        self.eps = spec.module.norm_eps
        self.key_proj = nn.Linear(embed, streams * d, bias=False)
        self.value_proj = nn.Linear(embed, d, bias=False)
        self.norm_key = CentredNorm(streams, d)
        self.norm_query = CentredNorm(streams, d)
        self.norm_conv = CentredNorm(streams, d)
        self.conv1d = depthwise(streams * d, spec.module.conv_kernel, spec.conv_dilation)
        self.dilation = spec.conv_dilation

    @property
    def reach(self) -> int:
        """How many earlier positions the convolution reads."""
        return self.gate_weights().reach

    @property
    def anchor(self) -> Tensor:
        """A dense weight whose device and dtype are the module's."""
        return self.value_proj.weight

    def project(self, vectors: Tensor) -> Tensor:
        """[B, T, streams x d + d] of vectors [B, T, C x dim]."""
        return project(vectors, [self.key_proj, self.value_proj])

    def gate_weights(self) -> GateWeights:
        """One eps for the three norms."""
        return GateWeights(
            query=self.norm_query.by_stream(),
            key=self.norm_key.by_stream(),
            norm=self.norm_conv.by_stream(),
            taps=self.conv1d.weight,
            eps=self.eps,
            norm_eps=self.eps,
            centred=True,
            dilation=self.dilation,
        )

"""qwen-ple's module, the n-gram layer of Qwen4-Exp: centred norms, no biases, a convolution."""

from __future__ import annotations

from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.gate_reference import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding, Weight


class QwenPLE(MemoryModule):
    """`key_proj` [streams x d, E] a key for each stream, `value_proj` [d, E] the shared value."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__(spec, embedding)
        d, embed, streams = spec.hidden_size, spec.embed_dim, self.streams
        assert spec.module.norm_eps is not None
        self.eps = spec.module.norm_eps
        self.key_proj = nn.Linear(embed, streams * d, bias=False)
        self.value_proj = nn.Linear(embed, d, bias=False)
        # The weights of an RMS norm of each stream, [streams x d], stored less one.
        self.norm_key = Weight(streams * d)
        self.norm_query = Weight(streams * d)
        self.norm_conv = Weight(streams * d)
        kernel, self.dilation = spec.module.conv_kernel, spec.conv_dilation
        self.conv1d = Weight(streams * d, 1, kernel)
        self.reach = (kernel - 1) * self.dilation

    @property
    def anchor(self) -> Tensor:
        """The weight of the hidden state's norm."""
        weight: Tensor = self.norm_query()
        return weight

    def linears(self) -> list[nn.Module]:
        """Return the layer of all keys, then that of the value."""
        return [self.key_proj, self.value_proj]

    def gate_weights(self) -> GateWeights:
        """Return weights with one eps for the three norms."""
        return GateWeights(
            query=self._by_stream(self.norm_query),
            key=self._by_stream(self.norm_key),
            norm=self._by_stream(self.norm_conv),
            taps=self.conv1d(),
            eps=self.eps,
            norm_eps=self.eps,
            centred=True,
            dilation=self.dilation,
        )

    def _by_stream(self, norm: Weight) -> Tensor:
        """Return [streams, d]: the weight of a norm."""
        weight: Tensor = norm()
        return weight.view(self.streams, -1)

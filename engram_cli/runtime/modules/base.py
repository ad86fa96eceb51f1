"""What the modules share: the table as a parameter, the gate's arithmetic, the short convolution.

In: hidden states and row numbers. Out: the addition, and the inputs of the convolution, which
decoding remembers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_cli.errors import ArtifactError
from engram_cli.formats.bundle import BundleSpec
from engram_cli.runtime import ops

MIN_GATE_DOT = 1e-6
TABLE = "multi_head_embedding.embedding.weight"


class Rows(nn.Embedding):
    """A table [rows, dim] as a parameter; `sparse` asks for sparse gradients.

    An nn.Embedding because DistributedDataParallel looks for sparse gradients nowhere else.
    """

    def __init__(self, weight: Tensor, *, trainable: bool, sparse: bool) -> None:
        rows, dim = weight.shape
        super().__init__(rows, dim, sparse=sparse, _weight=weight, _freeze=not trainable)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, C x dim] of rows int64[B, T, C], in the table's dtype."""
        return ops.gather(self.weight, rows.to(self.weight.device), sparse=self.sparse)


class MultiHeadEmbedding(nn.Module):
    """The table of a layer with the first row of each of its columns, int64[C]."""

    offsets: Tensor

    def __init__(self, rows: Rows, offsets: Tensor) -> None:
        super().__init__()
        self.embedding = rows
        self.register_buffer("offsets", offsets)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, C x dim] of table rows int64[B, T, C], whose offsets are already in."""
        out: Tensor = self.embedding(rows)
        return out


class MemoryModule(nn.Module):
    """A layer's module: `forward` gives the addition, `gates` how far each stream lets it in."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__()
        self.streams = spec.module.streams
        self.scale = 1 / math.sqrt(spec.hidden_size)
        self.multi_head_embedding = embedding

    @property
    def reach(self) -> int:
        """How many earlier positions the module reads beside the look-up: the convolution's."""
        return 0

    @property
    def anchor(self) -> Tensor:
        """A dense weight whose device and dtype are the module's."""
        raise NotImplementedError

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """[B, T, streams, 1] in 0..1, of streams [B, T, streams, d] and vectors [B, T, C x dim]."""
        raise NotImplementedError

    def forward(
        self,
        hidden: Tensor,
        rows: Tensor,
        keep: Tensor | None = None,
        history: Tensor | None = None,
        age: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What to add to `hidden`, of its shape, and the convolution's new inputs if it has one.

        `hidden` [B, T, d], [B, T, streams, d] or [B, T, streams x d]; `rows` int64[B, T, C]; `keep`
        bool[B, T], False at padding, which gets zero and feeds nothing; `history` [B, reach,
        streams x d]; `age` int64[B, T], how many earlier positions belong to the same document,
        None where a line is one document.
        """
        raise NotImplementedError

    def vectors(self, rows: Tensor) -> Tensor:
        """[B, T, C x dim] of rows int64[B, T, C] where the dense weights are, in their dtype.

        Floats are vectors that were looked up for all layers at once, and pass.
        """
        out: Tensor = rows if rows.is_floating_point() else self.multi_head_embedding(rows)
        return out.to(self.anchor.device, self.anchor.dtype)

    def split(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """The streams [B, T, streams, d] of hidden states, blank at padding."""
        streams = hidden.to(self.anchor.device).reshape(*hidden.shape[:2], self.streams, -1)
        return streams if keep is None else streams.masked_fill(~keep[:, :, None, None], 0)

    def home(self, keep: Tensor | None) -> Tensor | None:
        """A mask on the module's device."""
        return None if keep is None else keep.to(self.anchor.device)


class ShortConv(nn.Module):
    """Depthwise causal convolution and SiLU over streams x d, whose normalised inputs it is given.

    It holds its weight under the name `conv`; a subclass may choose another.
    """

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = depthwise(width, kernel, dilation)
        self.reach = (kernel - 1) * dilation
        self.dilation = dilation

    def forward(self, inputs: Tensor, history: Tensor | None, age: Tensor | None) -> Tensor:
        """[B, T, streams x d] of `inputs`; `history` [B, reach, streams x d], None at a start."""
        return short_conv(self.conv.weight, self.dilation, inputs, history, age)


def depthwise(width: int, kernel: int, dilation: int) -> nn.Conv1d:
    """The convolution's weight [width, 1, kernel], held as the published modules hold it."""
    return nn.Conv1d(
        width, width, kernel, groups=width, dilation=dilation, bias=False, dtype=torch.float32
    )


def short_conv(
    weight: Tensor, dilation: int, inputs: Tensor, history: Tensor | None, age: Tensor | None
) -> Tensor:
    """SiLU of the causal convolution of `inputs` [B, T, D]; as `MemoryModule.forward` says."""
    if history is None:
        reach = (weight.shape[-1] - 1) * dilation
        history = inputs.new_zeros(inputs.shape[0], reach, inputs.shape[2])
    history = history.to(inputs.device, inputs.dtype)
    if age is None:
        return F.silu(ops.causal_conv(history, inputs, weight, dilation))
    return F.silu(_conv_within(history, inputs, weight, dilation, age.to(inputs.device)))


def _conv_within(
    history: Tensor, inputs: Tensor, weight: Tensor, dilation: int, age: Tensor
) -> Tensor:
    """`ops.causal_conv`, each tap reading zero where it lies in an earlier document."""
    taps = weight.squeeze(1).t().to(inputs.dtype)  # [K, D]
    stream = torch.cat((history, inputs), dim=1)
    count, last = inputs.shape[1], len(taps) - 1
    total = torch.zeros_like(inputs)
    for tap, factor in enumerate(taps):
        seen = (age >= (last - tap) * dilation)[..., None]
        source = stream[:, tap * dilation : tap * dilation + count]
        total = torch.addcmul(total, source.masked_fill(~seen, 0), factor)
    return total


def open_gate(dot: Tensor) -> Tensor:
    """The gate in 0..1 of a scaled dot product: the sigmoid of its signed root."""
    return (dot.abs().clamp_min(MIN_GATE_DOT).sqrt() * dot.sign()).sigmoid()


def mean_square_normed(x: Tensor, eps: float) -> Tensor:
    """`x` [..., d] over the root of its mean square, in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)


def load_dense(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put dense weights by name into `module`. Raises ArtifactError when one lacks or is alien."""
    own = dense_state(module)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise ArtifactError(
            "the bundle's dense weights are not those of its module",
            "write the bundle again with engram attach --force",
        )
    module.load_state_dict(weights, strict=False, assign=True)


def dense_state(module: nn.Module) -> dict[str, Any]:
    """A module's weights beside its table, by name."""
    return {k: v for k, v in module.state_dict().items() if not k.startswith("multi_head")}

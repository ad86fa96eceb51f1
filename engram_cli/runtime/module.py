"""The modules that turn looked-up rows into what a layer adds to its hidden states.

A module holds its table and its dense weights under the names of the paper's demo. In: hidden
states and rows. Out: the addition, and the inputs of the convolution, which decoding remembers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engram_cli.errors import ArtifactError
from engram_cli.formats.bundle import BundleSpec
from engram_cli.runtime import ops

CONV_NORM_EPS = 1e-5
MIN_GATE_DOT = 1e-6


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the dtype of its weight where autocast hands it another."""

    def forward(self, x: Tensor) -> Tensor:
        """RMS-normalised `x` [..., d]."""
        return super().forward(x.to(self.weight.dtype))


class Rows(nn.Module):
    """A table [rows, dim] as a parameter; `sparse` asks for sparse gradients."""

    def __init__(self, weight: Tensor, *, trainable: bool, sparse: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.sparse = sparse

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


class ShortConv(nn.Module):
    """RMS norm per stream, then a depthwise causal convolution and SiLU, over streams x d."""

    def __init__(self, hidden_size: int, streams: int, kernel: int, dilation: int) -> None:
        super().__init__()
        width = streams * hidden_size
        self.conv = nn.Conv1d(
            width, width, kernel, groups=width, dilation=dilation, bias=False, dtype=torch.float32
        )
        self.norms = nn.ModuleList(RMSNorm(hidden_size, eps=CONV_NORM_EPS) for _ in range(streams))
        self.reach = (kernel - 1) * dilation
        self.dilation = dilation

    def inputs(self, value: Tensor) -> Tensor:
        """[B, T, streams x d]: what is convolved, of gated values [B, T, streams, d]."""
        normed = [norm(value[:, :, stream]) for stream, norm in enumerate(self.norms)]
        return normed[0] if len(normed) == 1 else torch.cat(normed, dim=-1)

    def forward(self, inputs: Tensor, history: Tensor | None) -> Tensor:
        """[B, T, streams x d] of `inputs`; `history` [B, reach, streams x d], None at a start."""
        if history is None:
            history = inputs.new_zeros(inputs.shape[0], self.reach, inputs.shape[2])
        convolved = ops.causal_conv(
            history.to(inputs.dtype), inputs, self.conv.weight, self.dilation
        )
        return nn.functional.silu(convolved)


class EngramV1(nn.Module):
    """engram-v1's module (docs/reference/modules.md): a gated value and its short convolution."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__()
        d, embed, streams = spec.hidden_size, spec.embed_dim, spec.streams
        self.streams = streams
        self.scale = 1 / math.sqrt(d)
        self.multi_head_embedding = embedding
        self.short_conv = ShortConv(d, streams, spec.conv_kernel, spec.conv_dilation)
        self.value_proj = nn.Linear(embed, d)
        self.key_projs = nn.ModuleList(nn.Linear(embed, d) for _ in range(streams))
        self.norm1 = nn.ModuleList(RMSNorm(d) for _ in range(streams))
        self.norm2 = nn.ModuleList(RMSNorm(d) for _ in range(streams))

    @property
    def reach(self) -> int:
        """How many earlier positions the convolution reads."""
        return self.short_conv.reach

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """[B, T, streams, 1] in 0..1: how far each stream [B, T, streams, d] lets the value in."""
        found = []
        for stream in range(self.streams):
            key = self.norm1[stream](self.key_projs[stream](vectors))
            query = self.norm2[stream](hidden[:, :, stream])
            dot = (key * query).sum(dim=-1) * self.scale
            root = dot.abs().clamp_min(MIN_GATE_DOT).sqrt() * dot.sign()
            found.append(root.sigmoid())
        return torch.stack(found, dim=2).unsqueeze(-1)

    def forward(
        self,
        hidden: Tensor,
        rows: Tensor,
        keep: Tensor | None = None,
        history: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What to add to `hidden`, of its shape and dtype, and the convolution's new inputs.

        `hidden` [B, T, d], or [B, T, streams, d]; `rows` int64[B, T, C]; `keep` bool[B, T], False
        at padding, which gets zero and feeds nothing; `history` [B, reach, streams x d].
        """
        weight = self.value_proj.weight
        vectors = self.multi_head_embedding(rows).to(weight.device, weight.dtype)
        streams = hidden.to(weight.device).reshape(*rows.shape[:2], self.streams, -1)
        if keep is not None:
            blank = ~keep.to(weight.device)[:, :, None]
            streams = streams.masked_fill(blank[..., None], 0)
        value = self.gates(streams, vectors) * self.value_proj(vectors).unsqueeze(2)
        inputs = self.short_conv.inputs(value)
        if keep is not None:
            inputs = inputs.masked_fill(blank, 0)
        out = value.flatten(2) + self.short_conv(inputs, history)
        if keep is not None:
            out = out.masked_fill(blank, 0)
        return out.reshape(hidden.shape).to(hidden.device, hidden.dtype), inputs


MODULES = {"engram-v1": EngramV1}


def load_dense(module: EngramV1, weights: dict[str, Tensor]) -> None:
    """Put dense weights by name into `module`. Raises ArtifactError when one lacks or is alien."""
    own = {k: v for k, v in module.state_dict().items() if not k.startswith("multi_head")}
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise ArtifactError(
            "the bundle's dense weights are not those of its module",
            "write the bundle again with engram attach --force",
        )
    module.load_state_dict(weights, strict=False, assign=True)

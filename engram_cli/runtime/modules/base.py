"""What the modules share: the table, a parameter or as stored, and all after the projections.

In: hidden states and row numbers. Out: the addition, and the inputs of the convolution, which
decoding remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_cli.errors import ArtifactError
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.rows.dtypes import RowType
from engram_cli.runtime import ops
from engram_cli.runtime.dense_gradients import look_up
from engram_cli.runtime.gate_reference import GateWeights, Past, opened_by
from engram_cli.runtime.sparse_gradients import Watched
from engram_cli.runtime.tables import HELD_DTYPES, Table, dequantise
from engram_cli.runtime.tiers import PlacedRows

MANY_TOKENS = 512  # from here on outputs are larger than weights
TABLE = "multi_head_embedding.embedding.weight"
HELD = {ROWS: TABLE, SCALES: "multi_head_embedding.embedding.scales"}  # in a state dict


class Rows(nn.Embedding):
    """A table [rows, dim] as a parameter; `sparse` asks for sparse gradients.

    `atomic` lets a GPU add dense gradients up in whatever order (`Table`). An nn.Embedding because
    DistributedDataParallel looks for sparse gradients nowhere else.
    """

    weight: nn.Parameter
    atomic = False

    def __init__(self, weight: Tensor, *, trainable: bool, sparse: bool) -> None:
        rows, dim = weight.shape
        super().__init__(rows, dim, sparse=sparse, _weight=weight, _freeze=not trainable)
        self._watched = Watched()

    def _watch(self) -> None:
        if self.sparse:
            self._watched.watch(self.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Return [B, T, C, dim] of rows int64[B, T, C], in the table's dtype."""
        rows = rows.to(self.weight.device)
        if not self.sparse:
            return look_up(self.weight, rows)
        self._watch()
        return F.embedding(rows, self.weight, sparse=True)

    def table(self) -> Table:
        """Return the rows as the look-up takes them."""
        self._watch()
        gradients = "sparse" if self.sparse else "atomic" if self.atomic else "dense"
        return Table(values=self.weight, gradients=gradients)


class StoredRows(nn.Module):
    """Quantised rows and scales as they are stored, frozen; a look-up makes them numbers.

    Buffers, since integers have no gradient. Scales are held as integers of their size, so that
    `model.to(dtype)` leaves them as they are. `dim`: the values of a row.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, scales: Tensor, *, row_type: RowType, dim: int) -> None:
        super().__init__()
        assert row_type.scaling is not None
        self.row_type = row_type
        self._scale_dtype = HELD_DTYPES[row_type.scaling.tensor][0]
        self._per_row = row_type.scaling.per == "row"
        self._packed_dim = dim if row_type.items.packed else None
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)

    def table(self) -> Table:
        """Return the rows as the look-up takes them."""
        scales = self.scales.view(self._scale_dtype)
        if self._per_row:
            scales = scales[:, 0]
        return Table(
            values=self.weight, scales=scales, dim=self._packed_dim, row_type=self.row_type
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Return [B, T, C x dim] of rows int64[B, T, C], float32."""
        found = dequantise(self.table(), rows.to(self.weight.device), torch.float32)
        return found.flatten(-2)

    def extra_repr(self) -> str:
        """What is printed of it."""
        scales = f"{self._scale_dtype} {tuple(self.scales.shape)}".removeprefix("torch.")
        return f"{tuple(self.weight.shape)}, {self.weight.dtype}, scales {scales}"


AnyRows = Rows | StoredRows | PlacedRows


class MultiHeadEmbedding(nn.Module):
    """The table of a layer with the first row of each of its columns, int64[C]."""

    offsets: Tensor

    def __init__(self, rows: AnyRows, offsets: Tensor) -> None:
        super().__init__()
        self.embedding = rows
        self.register_buffer("offsets", offsets)

    def forward(self, rows: Tensor) -> Tensor:
        """Return [B, T, C x dim] of table rows int64[B, T, C], which include the offsets."""
        own = self.embedding
        out: Tensor = own.forward(rows) if type(own) is Rows and is_bare(own) else own(rows)
        return out.flatten(-2) if out.ndim > rows.ndim else out


class MemoryModule(nn.Module):
    """A layer's module: `forward` returns the addition, `gates` how far each stream opens."""

    def __init__(self, spec: BundleSpec, embedding: MultiHeadEmbedding) -> None:
        super().__init__()
        self.streams = spec.module.streams
        self.carried_streams = spec.module.carried_streams
        self.multi_head_embedding = embedding
        self.reach = 0  # earlier positions that the convolution reads, where there is one

    @property
    def anchor(self) -> Tensor:
        """A norm's weight, whose device and dtype are the module's.

        Projections may be adapters or quantised, and their weights anything.
        """
        raise NotImplementedError

    def linears(self) -> list[nn.Module]:
        """Return the layers whose outputs side by side are the projections."""
        raise NotImplementedError

    def project(self, vectors: Tensor) -> Tensor:
        """Return [B, T, streams x d + d]: the keys of all streams, then the value.

        `vectors` [B, T, C x dim].
        """
        return project(vectors, self.linears())

    def gate_weights(self) -> GateWeights:
        """Return the weights of what follows the projections."""
        raise NotImplementedError

    def added_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return the dtype of the addition."""
        return hidden.dtype

    def gates(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """Return [B, T, streams, 1] in 0..1, float32; `hidden` [B, T, streams, d]."""
        return opened_by(self.gate_weights(), hidden, self.project(vectors))[0]

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
        """Return what to add to `hidden`, of its shape, and the convolution's new inputs, if any.

        `hidden` [B, T, d], [B, T, streams, d] or [B, T, streams x d]; `rows` int64[B, T, C], or
        their vectors; `keep` bool[B, T], False at padding, which gets zero and feeds nothing;
        `history` [B, reach, streams x d]; `age` int64[B, T], how many earlier positions belong to
        the same document, None where a line is one document. `residual` gives the sum with
        `hidden`, rounded once; the inputs are those of the last `tail` positions.
        """
        weights = self.gate_weights()
        device = weights.query.device
        streams = hidden.to(device).reshape(*hidden.shape[:2], self.streams, -1)
        keep, history, age = (None if x is None else x.to(device) for x in (keep, history, age))
        out, inputs = ops.gate(
            weights,
            streams,
            self.project(self.vectors(rows)),
            Past(keep=keep, history=history, age=age),
            dtype=hidden.dtype if residual else self.added_dtype(hidden),
            residual=residual,
            tail=tail,
        )
        return out.reshape(hidden.shape).to(hidden.device), inputs

    def vectors(self, rows: Tensor) -> Tensor:
        """Return [B, T, C x dim] of rows int64[B, T, C], with the dense weights' device and dtype.

        Floats are vectors that were looked up for all layers at once, and pass.
        """
        out: Tensor = rows if rows.is_floating_point() else self.multi_head_embedding(rows)
        anchor = self.anchor
        return out.to(anchor.device, anchor.dtype)


class Weight(nn.Module):
    """A weight that others compute with, under the name it is published by; called, it gives it.

    Not read but called: accelerate brings an offloaded weight for the length of a call.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def __call__(self) -> Tensor:
        """Return the weight in use; where nothing hooks in, without the ways of nn.Module."""
        if is_bare(self):
            return self.weight
        found: Tensor = super().__call__()
        return found

    def forward(self) -> Tensor:
        """Return the weight in use."""
        return self.weight

    def extra_repr(self) -> str:
        """What is printed of it."""
        return str(tuple(self.weight.shape))


def project(vectors: Tensor, linears: Sequence[nn.Module]) -> Tensor:
    """Return the outputs of linear layers side by side, [B, T, sum of their widths].

    Many tokens: one product with all weights, so that no output is copied; few: one each, so that
    no weight is. A layer that is more than nn.Linear (an adapter, quantised, offloaded) is called.
    """
    if len(linears) == 1:
        only: Tensor = linears[0](vectors)
        return only
    plain = [linear for linear in linears if isinstance(linear, nn.Linear) and is_plain(linear)]
    if len(plain) < len(linears) or vectors.shape[0] * vectors.shape[1] < MANY_TOKENS:
        return torch.cat([linear(vectors) for linear in linears], dim=-1)
    weights: list[Tensor] = [linear.weight for linear in plain]
    biases: list[Tensor] = [linear.bias for linear in plain if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    return F.linear(vectors, torch.cat(weights), bias)


def is_plain(linear: nn.Linear) -> bool:
    """Return whether calling a layer is no more than a product with its weight."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and is_bare(linear)


def is_bare(module: nn.Module) -> bool:
    """Return whether calling a module is no more than its class's `forward`."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return not (hooked or module._backward_pre_hooks or "forward" in module.__dict__)


def load_dense(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load dense weights by name. Raises ArtifactError where names or shapes differ."""
    own = dense_state(module)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise ArtifactError(
            "the bundle's dense weights are not those of its module",
            "write the bundle again with engram attach --force",
        )
    module.load_state_dict(weights, strict=False, assign=True)


def dense_state(module: nn.Module) -> dict[str, Any]:
    """Return a module's weights without its table, by name."""
    return {k: v for k, v in module.state_dict().items() if not k.startswith("multi_head")}

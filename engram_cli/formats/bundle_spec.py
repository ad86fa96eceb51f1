"""What a bundle holds, by its sizes alone: hash, layers, how rows are stored, module."""

from __future__ import annotations

from dataclasses import dataclass, field

from engram_cli.formats.module_spec import ModuleSpec, Part
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import first_layer
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.rows.safetensors import TensorSpec
from engram_cli.rows.source import HITS as HITS
from engram_cli.rows.source import ROWS as ROWS
from engram_cli.rows.source import SCALES as SCALES


def decoder_index(layout: HashLayout, layer: int) -> int:
    """Return the place, from 0, of the decoder layer that a layer id of the scheme names."""
    return layer - first_layer(layout.scheme)


def layer_number(scheme: str, place: int) -> int:
    """Return the layer id by which a scheme names the decoder layer at `place`, counted from 0."""
    return place + first_layer(scheme)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """What a bundle holds: the hash, the layers that carry a table, the rows and the module.

    Whether it has hits too is not said here, since nothing that is computed depends on them.

    `layers` are the layout's ids, which seed the hash; `decoder_layers` are the decoder layers,
    counted from 0, that carry them, () for those that the ids name.

    `dtype` is the logical one of the rows (`rows.dtypes`). `packed`: positions that restart at 0
    begin another document, which sees nothing of the last.
    """

    layout: HashLayout
    layers: tuple[int, ...]
    dim: int
    dtype: str
    hidden_size: int
    num_layers: int
    model_type: str
    module: ModuleSpec = field(default_factory=ModuleSpec)
    packed: bool = False
    decoder_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.decoder_layers:
            object.__setattr__(self, "decoder_layers", self.named_layers)

    @property
    def named_layers(self) -> tuple[int, ...]:
        """The decoder layers that the layers' own ids name."""
        return tuple(decoder_index(self.layout, layer) for layer in self.layers)

    @property
    def embed_dim(self) -> int:
        """E: the length of a layer's looked-up vectors, columns x dim."""
        return self.layout.columns * self.dim

    @property
    def conv_dilation(self) -> int:
        """The convolution steps by the longest n-gram (docs/reference/modules.md)."""
        return self.layout.max_order

    @property
    def row_type(self) -> RowType:
        """How rows are stored."""
        return DTYPES.load(self.dtype)

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that hold a layer: its rows, and their scales where the dtype has some."""
        return (ROWS,) if self.row_type.scaling is None else (ROWS, SCALES)

    def tensor(self, layer: int, part: str) -> TensorSpec:
        """Return a tensor of a layer: `layers.N.rows`, `layers.N.scales` or `layers.N.hits`."""
        row_type, rows = self.row_type, self.rows(layer)
        name = f"layers.{layer}.{part}"
        if part == HITS:
            return TensorSpec(name=name, dtype="uint32", shape=(rows,))
        if part == ROWS:
            shape = (rows, row_type.width(self.dim))
            return TensorSpec(name=name, dtype=row_type.items.tensor, shape=shape)
        scaling = row_type.scaling
        assert scaling is not None
        return TensorSpec(name=name, dtype=scaling.tensor, shape=scaling.shape(rows, self.dim))

    @property
    def row_bytes(self) -> int:
        """The bytes of one row with its scales, the one of a layer left out."""
        return self.row_type.row_bytes(self.dim)

    @property
    def table_bytes(self) -> int:
        """The bytes of all layers' rows and scales."""
        return sum(self.tensor(layer, part).nbytes for layer in self.layers for part in self.parts)

    @property
    def hits_bytes(self) -> int:
        """The bytes of all layers' hits, in a bundle that has them."""
        return sum(self.tensor(layer, HITS).nbytes for layer in self.layers)

    @property
    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each dense weight of a layer."""
        return self.module.shapes(self.hidden_size, self.embed_dim)

    @property
    def dense_parts(self) -> list[Part]:
        """The parts of the dense weights of a layer, which say how each starts."""
        return self.module.parts(self.hidden_size, self.embed_dim)

    def rows(self, layer: int) -> int:
        """Return the height of a layer's table."""
        return self.layout.layer(layer).rows

    def index(self, layer: int) -> int:
        """Return the decoder layer, counted from 0, that carries the table of a layer id."""
        return self.decoder_layers[self.layers.index(layer)]

    def label(self, layer: int) -> str:
        """Return the name of a layer: its decoder layer, and the table's number if that differs."""
        place = self.index(layer)
        return f"{place}" if place == layer else f"{place} (layer {layer} of the table)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a layer's rows, scales or hits: the lines first_row .. first_row + rows - 1."""

    layer: int
    part: str
    file: str
    first_row: int
    rows: int

    def tensor(self, spec: BundleSpec) -> TensorSpec:
        """Return the tensor that the file holds."""
        whole = spec.tensor(self.layer, self.part)
        return TensorSpec(name=whole.name, dtype=whole.dtype, shape=(self.rows, *whole.shape[1:]))

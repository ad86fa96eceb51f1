"""What a table is to be: its arrays, bytes and attributes, and what a resumed build compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows import DTYPES
from engram_cli.rows.checksum import ALGORITHM
from engram_cli.rows.dtypes import LARGEST_SCALE, LEAST_SCALE, RowType
from engram_cli.rows.source import HITS, SCALES
from engram_cli.table.grid import (
    HITS_TYPE,
    LOOKUP,
    LOOKUP_TYPE,
    ChunkedArray,
    array_name,
    chunked,
    content_digest,
)
from engram_cli.table.inits.base import Filler, Init, InitWithArrays, StoredInit, SummedInit
from engram_cli.version import __version__

FORMAT = "engram-table"
VERSION, SHARDED = 1, 2  # the version of tables with inner chunks, which older readers refuse
MAX_DIM = 2**16
MAX_CHUNKS = 2**17
PIECE_BYTES = 2**20  # float32 values made while in the L2 cache


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table of `dim` values a row and head, stored as `dtype`, filled by `init`.

    `chunk_rows` or `chunk_size`: rows or bytes of a chunk file, None for about 128 MiB;
    `inner_size`: bytes of the inner chunks in it, None for none. `tokens`: how many tokens the hits
    that are stored with the rows were counted over, None where there are no hits. `scale`: that of
    every layer, for a dtype that has one for all rows; None to find it. `source`: dtype and digest
    of the table that this one is converted from.
    """

    layout: HashLayout
    dim: int
    dtype: str
    init: Init
    chunk_rows: int | None = None
    chunk_size: int | None = None
    inner_size: int | None = None
    tokens: int | None = None
    scale: float | None = None
    source: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise InputError(f"dim {self.dim}", f"give 1 to {MAX_DIM} values a row, such as 64")
        if self.dtype in DTYPES and self.dtype not in list(DTYPES):
            raise InputError(
                f"a table does not hold rows of {self.dtype}", f"choose {DTYPES.choices()}"
            )
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise InputError(f"{self.chunk_rows} rows a chunk", "give 1 or more")
        if self.scale is not None:
            self._check_scale(self.scale)
        for layer, array in self.row_arrays.items():
            if array.chunks > MAX_CHUNKS:
                raise InputError(
                    f"{array.chunk_rows} rows a chunk make {array.chunks:,} files of layer {layer}",
                    f"choose more, so that there are at most {MAX_CHUNKS:,}",
                )
            if array.inner_rows and array.chunk_rows // array.inner_rows > MAX_CHUNKS:
                raise InputError(
                    f"{array.inner_rows} rows an inner chunk make more than {MAX_CHUNKS:,} of them "
                    "in a file",
                    "give a larger --inner-chunk-size, or a smaller --chunk-size",
                )

    def _check_scale(self, scale: float) -> None:
        if not self.row_type.of_layer:
            raise InputError(f"{self.dtype} takes no scale", "leave it out, or give dtype fp8")
        if not LEAST_SCALE <= scale <= LARGEST_SCALE:
            raise InputError(f"scale {scale}", "give a positive number such as 0.0002")

    @property
    def row_type(self) -> RowType:
        """How rows are stored."""
        return DTYPES.load(self.dtype)

    @property
    def row_arrays(self) -> dict[int, ChunkedArray]:
        """The rows of each layer."""
        width, physical = self.row_type.width(self.dim), self.row_type.physical
        size = width * physical.itemsize
        rows = self.chunk_rows or _rows_in(self.chunk_size, size)
        inner = _rows_in(self.inner_size, size)
        return {
            entry.layer: chunked(array_name(entry.layer), entry.rows, width, physical, rows, inner)
            for entry in self.layout.layers
        }

    @property
    def version(self) -> int:
        """The version of the format that readers must know."""
        return VERSION if self.inner_size is None else SHARDED

    @property
    def row_scale_arrays(self) -> dict[int, ChunkedArray]:
        """The scales of each layer's rows, in chunks of as many rows; none without such scaling."""
        scaling = self.row_type.scaling
        if scaling is None or self.row_type.of_layer:
            return {}
        width = scaling.width(self.dim)
        return {
            layer: chunked(
                array_name(layer, SCALES),
                rows.rows,
                width,
                scaling.dtype,
                rows.chunk_rows,
                rows.inner_rows,
            )
            for layer, rows in self.row_arrays.items()
        }

    @property
    def layer_scale_arrays(self) -> dict[int, ChunkedArray]:
        """The one scale of each layer, where the dtype has one for all of its rows."""
        scaling = self.row_type.scaling
        if scaling is None or not self.row_type.of_layer:
            return {}
        return {
            layer: chunked(array_name(layer, SCALES), 1, None, scaling.dtype)
            for layer in self.row_arrays
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of a row with its scales."""
        return self.row_type.row_bytes(self.dim)

    @property
    def filled_arrays(self) -> list[ChunkedArray]:
        """The rows and their scales: what the init and the dtype decide."""
        groups = (self.row_arrays, self.row_scale_arrays, self.layer_scale_arrays)
        return [array for group in groups for array in group.values()]

    @property
    def chunk_sizes(self) -> dict[str, int]:
        """The bytes of each chunk file of the rows and their scales."""
        return {file: array.file_bytes for array in self.filled_arrays for file in array.files}

    @property
    def hits_arrays(self) -> dict[int, ChunkedArray]:
        """The hits of each layer; none without statistics."""
        if self.tokens is None:
            return {}
        rows = _rows_in(self.chunk_size, HITS_TYPE.itemsize)
        inner = _rows_in(self.inner_size, HITS_TYPE.itemsize)
        return {
            entry.layer: chunked(
                array_name(entry.layer, HITS), entry.rows, None, HITS_TYPE, rows, inner
            )
            for entry in self.layout.layers
        }

    @property
    def lookup_array(self) -> ChunkedArray | None:
        """The vocabulary map; None where the layout hashes raw ids."""
        if self.layout.lookup is None:
            return None
        size = len(self.layout.lookup)
        return chunked(LOOKUP, size, None, LOOKUP_TYPE, chunk_rows=size)

    @property
    def arrays(self) -> list[ChunkedArray]:
        """Every array of the store."""
        lookup = [] if self.lookup_array is None else [self.lookup_array]
        return [*self.filled_arrays, *self.hits_arrays.values(), *lookup, *self.init_arrays]

    @property
    def init_arrays(self) -> list[ChunkedArray]:
        """What the init stores with the rows, so that a reader can undo what it did."""
        return self.init.arrays(self.dim) if isinstance(self.init, InitWithArrays) else []

    @property
    def sums_arrays(self) -> list[ChunkedArray]:
        """The sums that are kept for updates; none unless the init keeps them."""
        return self.init.sums_arrays(self.dim) if isinstance(self.init, SummedInit) else []

    @property
    def sums_bytes(self) -> int:
        """The size of the sums that are kept for updates."""
        return sum(array.stored_bytes for array in self.sums_arrays)

    @property
    def total_bytes(self) -> int:
        """The size of all chunk files, kept sums included."""
        return sum(array.stored_bytes for array in self.arrays) + self.sums_bytes

    @property
    def request(self) -> dict[str, Any]:
        """All that decides the row chunks: a half-built table is resumed only by an equal one."""
        return {
            "version": self.version,
            "layout": self.layout.fingerprint,
            "dim": self.dim,
            "dtype": self.dtype,
            **({} if self.scale is None else {"scale": self.scale}),
            **{f"source {name}": value for name, value in (self.source or {}).items()},
            "init": self.init.name,
            **{f"init {name}": value for name, value in self.init.parameters.items()},
            **({"sums": "kept"} if self.sums_arrays else {}),
            **{
                f"rows a chunk, layer {layer}": array.chunk_rows
                for layer, array in self.row_arrays.items()
            },
            **{
                f"rows an inner chunk, layer {layer}": array.inner_rows
                for layer, array in self.row_arrays.items()
                if array.inner_rows is not None
            },
        }

    def attributes(self) -> dict[str, Any]:
        """Return the group attributes of a table that is being built."""
        return {
            "format": FORMAT,
            "version": self.version,
            "complete": False,
            "tool_version": __version__,
            "dim": self.dim,
            "dtype": self.dtype,
            "init": {"name": self.init.name, "parameters": self.init.parameters},
            **({} if self.source is None else {"source": dict(self.source)}),
            "statistics": None if self.tokens is None else {"tokens": self.tokens},
            "fingerprint": self.layout.fingerprint,
            "layout": self.layout.to_json(),
        }

    def final_attributes(self, files: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
        """Return the attributes of the finished table, whose `files` are path: (size, checksum)."""
        attributes = self.attributes() | {"complete": True}
        attributes["manifest"] = {
            "algorithm": ALGORITHM,
            "files": {name: list(files[name]) for name in sorted(files)},
        }
        return attributes | {"digest": content_digest(attributes)}


def _rows_in(size: int | None, row_bytes: int) -> int | None:
    return None if size is None else max(1, size // row_bytes)


def layer_scale(spec: TableSpec, layer: int, filler: Filler | None) -> NDArray[np.float32]:
    """Return the scale float32[1] of a layer of `spec`, whose rows `filler` gives."""
    if spec.scale is not None:
        return np.array([spec.scale], dtype=np.float32)
    kept = spec.init.layer_scale(layer) if isinstance(spec.init, StoredInit) else None
    if kept is not None:
        return kept.astype(np.float32)
    bound = spec.init.bound(layer, spec.dim)
    if bound is None:
        bound = 0.0 if filler is None else largest(filler, spec.row_arrays[layer].rows, spec.dim)
    return np.array([spec.row_type.layer_scale(bound)], dtype=np.float32)


def largest(filler: Filler, rows: int, dim: int) -> float:
    """Return the largest size of a finite value in all rows, 0 where there is none."""
    step = min(max(1, PIECE_BYTES // (4 * dim)), rows)
    values = np.empty((step, dim), dtype=np.float32)
    found = 0.0
    for first in range(0, rows, step):
        piece = values[: min(step, rows - first)]
        filler(first, piece)
        sizes = np.abs(piece)
        found = max(found, float(np.max(sizes, where=np.isfinite(sizes), initial=0)))
    return found

"""The only door to `zarr`: the metadata of a store is written through it.

Chunk files are raw rows: `table.fill` writes and this module maps them without it, since zarr's own
writes reach a tenth of the speed. In: a path. Out: a TableStore, whose rows are mapped, not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.files import local_path
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.table.attributes import Description, read_description
from engram_cli.table.gather import Gatherer
from engram_cli.table.grid import LOOKUP, ChunkedArray, hits_array, row_array, scales_array
from engram_cli.table.reading import DAMAGED, map_chunk, read_range

PIECE_BYTES = 2**20  # float32 values decoded while in the L2 cache


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStore:
    """A finished table. `layout` is bound to the stored lookup; `attributes` are the group's."""

    path: Path
    layout: HashLayout
    dim: int
    dtype: str
    init: str
    attributes: Mapping[str, Any]
    arrays: Mapping[str, ChunkedArray]
    _gatherers: dict[str, Gatherer] = field(default_factory=dict, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The digest of the table's content."""
        return str(self.attributes["digest"])

    @property
    def row_type(self) -> RowType:
        """How rows are stored."""
        return DTYPES.load(self.dtype)

    @property
    def has_hits(self) -> bool:
        """Whether the table says how often the corpus fell on each row."""
        return self.attributes["statistics"] is not None

    def chunks(self, layer: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, rows [n, width] as stored, read-only and mapped) for each chunk of a layer.

        What the scales are is not said here: `values` and `rows` apply them.
        """
        array, _ = self._arrays_of(layer)
        return self._mapped(array)

    def scale_chunks(self, layer: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, scales [n, width]) for each chunk of a layer, or (0, [1]) where it has one.

        Read-only and mapped. Raises InputError where rows have no scales.
        """
        _, scales = self._arrays_of(layer)
        if scales is None:
            raise _no_scales(self.dtype)
        return self._mapped(scales)

    def hit_chunks(self, layer: int | None = None) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """(first row, hits uint32[n]) for each chunk of a layer, read-only and mapped.

        Raises InputError where the table holds no hits.
        """
        return self._mapped(self._hits_of(layer))

    def _mapped(self, array: ChunkedArray) -> Iterator[tuple[int, NDArray[Any]]]:
        for index in range(array.chunks):
            first, count = array.span(index)
            yield first, map_chunk(self.path, array, index)[:count]

    def values(
        self, layer: int | None = None, piece_rows: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, values float32[n, dim]) of a layer in order, `piece_rows` at a time.

        Constant memory: a piece is about 1 MiB where `piece_rows` is None, and new each time.
        Raises InputError, and ArtifactError for a file that cannot be read.
        """
        if piece_rows is not None and piece_rows < 1:
            raise InputError(f"{piece_rows} rows a piece", "give 1 or more")
        array, _ = self._arrays_of(layer)
        step = piece_rows or max(1, PIECE_BYTES // (4 * self.dim))
        for first in range(0, array.rows, step):
            piece = np.empty((min(step, array.rows - first), self.dim), dtype=np.float32)
            self.read(layer, first, piece)
            yield first, piece

    def read(self, layer: int | None, first: int, values: NDArray[np.float32]) -> None:
        """Read the rows of a layer from `first` on into `values` float32[n, dim], contiguous.

        Raises InputError for rows that the layer has not, ArtifactError for a file that cannot be
        read. May run in threads.
        """
        array, scales = self._arrays_of(layer)
        if not 0 <= first <= array.rows - len(values):
            raise InputError(
                f"rows {first} to {first + len(values)} of the {array.rows} rows of layer "
                f"{array.name}",
                "ask for rows that the layer has",
            )
        stored = read_range(self.path, array, first, len(values))
        factors = None if scales is None else self.read_scales(layer, first, len(values))
        self.row_type.decode(stored, factors, values)

    def rows(self, layer: int | None, indices: ArrayLike) -> NDArray[np.float32]:
        """float32[n, dim]: the rows of a layer at `indices` [n], in any order.

        Raises InputError for rows that the layer has not, ArtifactError for what cannot be read.
        """
        stored, scales = self.stored(layer, indices)
        values = np.empty((len(stored), self.dim), dtype=np.float32)
        self.row_type.decode(stored, scales, values)
        return values

    def stored(
        self, layer: int | None, indices: ArrayLike
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The rows [n, width] at `indices` [n] as stored, and their scales or the one of the layer.

        Raises as `rows`.
        """
        array, scales = self._arrays_of(layer)
        rows = _row_numbers(indices, array)
        stored = self._gather(array, rows)
        if scales is None:
            return stored, None
        if _is_single(scales):
            return stored, read_whole(self.path, scales)
        return stored, self._gather(scales, rows)

    def hits(self, layer: int | None = None) -> NDArray[np.uint32] | None:
        """uint32[rows]: how often the corpus fell on each row; None when it was not counted."""
        array = self.arrays.get(hits_array(self.layout.layer(layer).layer))
        return None if array is None else read_whole(self.path, array)

    def hits_at(self, layer: int | None, indices: NDArray[np.int64]) -> NDArray[np.uint32]:
        """uint32[n]: the hits of the rows [n] at `indices`; maps, reads no more than those.

        Raises InputError where the table holds no hits.
        """
        return self._gather(self._hits_of(layer), indices)

    def read_hits(self, layer: int | None, first: int, count: int) -> NDArray[np.uint32]:
        """uint32[count]: the hits of the rows from `first` on, which must be counted.

        Raises ArtifactError for a file that cannot be read. May run in threads.
        """
        array = self.arrays[hits_array(self.layout.layer(layer).layer)]
        return read_range(self.path, array, first, count)

    def read_scales(self, layer: int | None, first: int, count: int) -> NDArray[Any]:
        """The stored scales [count, n] of the rows from `first` on, or the one [1] of the layer.

        Raises InputError where rows have no scales, ArtifactError for a file that cannot be read.
        May run in threads.
        """
        _, scales = self._arrays_of(layer)
        if scales is None:
            raise _no_scales(self.dtype)
        part = (0, 1) if _is_single(scales) else (first, count)
        return read_range(self.path, scales, *part)

    def _arrays_of(self, layer: int | None) -> tuple[ChunkedArray, ChunkedArray | None]:
        """The rows of a layer, and their scales where the dtype has some."""
        number = self.layout.layer(layer).layer
        return self.arrays[row_array(number)], self.arrays.get(scales_array(number))

    def _hits_of(self, layer: int | None) -> ChunkedArray:
        array = self.arrays.get(hits_array(self.layout.layer(layer).layer))
        if array is None:
            raise InputError(f"{self.path} holds no hits", "build it from statistics")
        return array

    def _gather(self, array: ChunkedArray, rows: NDArray[np.int64]) -> NDArray[Any]:
        if array.name not in self._gatherers:
            self._gatherers[array.name] = Gatherer(self.path, array)
        return self._gatherers[array.name].take(rows)


def open_table(path: Path | str) -> TableStore:
    """Open a finished table: attributes, manifest and file sizes are checked, no row is read.

    Raises InputError when there is none, IncompleteError for a half-built one, ArtifactError for
    one that is damaged, tampered with or newer. Checksums are for `table.verify`.
    """
    about = read_description(local_path(path))
    _check_sizes(about)
    return TableStore(
        path=about.path,
        layout=bound_layout(about),
        dim=about.dim,
        dtype=about.dtype,
        init=str(about.attributes["init"]["name"]),
        attributes=about.attributes,
        arrays=about.arrays,
    )


def bound_layout(about: Description) -> HashLayout:
    """The layout with the store's own lookup. Raises ArtifactError when it is another one."""
    array = about.arrays.get(LOOKUP)
    if array is None:
        return about.layout
    try:
        return about.layout.bind(cast("NDArray[np.int32]", read_whole(about.path, array)))
    except MismatchError:
        raise ArtifactError(f"{about.path / LOOKUP} is damaged", DAMAGED) from None


def read_whole(path: Path, array: ChunkedArray) -> NDArray[Any]:
    """All rows of an array, read into memory. Raises ArtifactError."""
    return read_range(path, array, 0, array.rows)


def zarr_metadata(arrays: list[ChunkedArray], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The zarr.json files of a store, by path: the group's, and one for each array."""
    import zarr
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    group = zarr.create_group(store=MemoryStore(files), attributes=dict(attributes))
    for array in arrays:
        group.create_array(
            array.name,
            shape=array.shape,
            chunks=array.chunk_shape,
            dtype=array.dtype,
            compressors=None,
            filters=None,
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
    return {name: document.to_bytes() for name, document in files.items()}


def _row_numbers(indices: ArrayLike, array: ChunkedArray) -> NDArray[np.int64]:
    """`indices` as contiguous int64[n], each of them a row of `array`. Raises InputError."""
    wanted = np.asarray(indices)
    if wanted.size == 0:
        wanted = wanted.astype(np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise InputError(
            f"row indices are {wanted.dtype} of shape {wanted.shape}", "give integers [n]"
        )
    # As unsigned numbers the negative ones are past the end too.
    outside = wanted.astype(np.uint64, copy=False) >= array.rows
    if outside.any():
        raise InputError(
            f"row {wanted[outside][0]} is outside the {array.rows} rows of layer {array.name}",
            "rows are those that hashing with this table's layout gives",
        )
    return np.ascontiguousarray(wanted, dtype=np.int64)


def _is_single(scales: ChunkedArray) -> bool:
    """Whether one scale serves all rows of the layer."""
    return scales.width is None


def _no_scales(dtype: str) -> InputError:
    return InputError(f"rows of {dtype} have no scales", "take the rows alone")


def _check_sizes(about: Description) -> None:
    for name, (size, _) in about.files.items():
        try:
            found = (about.path / name).stat().st_size
        except OSError as error:
            raise ArtifactError(
                f"{about.path / name} cannot be read: {error.strerror}", DAMAGED
            ) from None
        if found != size:
            raise ArtifactError(f"{about.path / name} has {found} bytes, not {size}", DAMAGED)

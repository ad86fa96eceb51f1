"""The only door to `zarr`: the metadata of a store is written through it.

Chunk files are raw rows: `table.fill` writes and this module maps them without it, since zarr's own
writes reach a tenth of the speed. In: a path. Out: a TableStore, whose rows are mapped, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.table.attributes import Description, read_description
from engram_cli.table.codecs import CODECS
from engram_cli.table.grid import LOOKUP, ChunkedArray, hits_array, row_array

_VERIFY = "see what is wrong with engram verify, then build the table again"


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
    _maps: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The digest of the table's content."""
        return str(self.attributes["digest"])

    def chunks(self, layer: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, rows [n, dim] as stored, read-only and mapped) for each chunk of a layer."""
        array = self.arrays[row_array(self.layout.layer(layer).layer)]
        for index in range(array.chunks):
            first, count = array.span(index)
            yield first, self._map(array, index)[:count]

    def rows(self, layer: int | None, indices: ArrayLike) -> NDArray[np.float32]:
        """float32[n, dim]: the rows of a layer at `indices` [n]. Raises InputError."""
        array = self.arrays[row_array(self.layout.layer(layer).layer)]
        wanted = np.asarray(indices)
        if wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError(
                f"row indices are {wanted.dtype} of shape {wanted.shape}", "give integers [n]"
            )
        outside = (wanted < 0) | (wanted >= array.rows)
        if outside.any():
            raise InputError(
                f"row {wanted[outside][0]} is outside the {array.rows} rows of layer {array.name}",
                "rows are those that hashing with this table's layout gives",
            )
        stored = np.empty((len(wanted), *array.shape[1:]), dtype=array.dtype)
        for index, places in _by_chunk(wanted, array):
            first, _ = array.span(index)
            stored[places] = self._map(array, index).take(wanted[places] - first, axis=0)
        return CODECS.load(self.dtype).decode(stored)

    def hits(self, layer: int | None = None) -> NDArray[np.uint32] | None:
        """uint32[rows]: how often the corpus fell on each row; None when it was not counted."""
        array = self.arrays.get(hits_array(self.layout.layer(layer).layer))
        return None if array is None else read_whole(self.path, array)

    def _map(self, array: ChunkedArray, index: int) -> NDArray[Any]:
        name = array.file(index)
        if name not in self._maps:
            self._maps[name] = _map_chunk(self.path, array, index)
        return self._maps[name]


def open_table(path: Path | str) -> TableStore:
    """Open a finished table: attributes, manifest and file sizes are checked, no row is read.

    Raises InputError when there is none, IncompleteError for a half-built one, ArtifactError for
    one that is damaged, tampered with or newer. Checksums are for `table.verify`.
    """
    about = read_description(Path(path))
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
        raise ArtifactError(f"{about.path / LOOKUP} is damaged", _VERIFY) from None


def read_whole(path: Path, array: ChunkedArray) -> NDArray[Any]:
    """All rows of an array, read into memory. Raises ArtifactError."""
    whole = np.empty(array.shape, dtype=array.dtype)
    for index in range(array.chunks):
        first, count = array.span(index)
        whole[first : first + count] = _map_chunk(path, array, index)[:count]
    return whole


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


def _check_sizes(about: Description) -> None:
    for name, (size, _) in about.files.items():
        try:
            found = (about.path / name).stat().st_size
        except OSError as error:
            raise ArtifactError(
                f"{about.path / name} cannot be read: {error.strerror}", _VERIFY
            ) from None
        if found != size:
            raise ArtifactError(f"{about.path / name} has {found} bytes, not {size}", _VERIFY)


def _by_chunk(wanted: NDArray[Any], array: ChunkedArray) -> Iterator[tuple[int, Any]]:
    """(chunk, places in `wanted` whose rows lie in it) for each chunk that is needed."""
    if array.chunks == 1:
        yield 0, slice(None)
        return
    chunk_of = wanted // array.chunk_rows
    # A stable sort of 16-bit keys is a radix sort: ten times faster than one of int64.
    small = chunk_of.astype(np.uint16) if array.chunks <= 2**16 else chunk_of
    order = np.argsort(small, kind="stable")
    ends = np.cumsum(np.bincount(chunk_of, minlength=array.chunks))
    begin = 0
    for index, end in enumerate(ends.tolist()):
        if end > begin:
            yield index, order[begin:end]
        begin = end


def _map_chunk(path: Path, array: ChunkedArray, index: int) -> NDArray[Any]:
    file = path / array.file(index)
    try:
        with file.open("rb") as chunk:
            mapped = mmap.mmap(chunk.fileno(), array.chunk_bytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be mapped: {error}", _VERIFY) from None
    rows: NDArray[Any] = np.frombuffer(mapped, dtype=array.dtype).reshape(array.chunk_shape)
    return rows

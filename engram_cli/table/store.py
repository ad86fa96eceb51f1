"""A finished table: opens one, and writes the metadata of new ones.

The only file that imports `zarr`. Chunk files are raw rows: `table.fill` writes and `rows.gather`
reads them without it, since zarr's own reads and writes reach a tenth of the speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.remote.path import look_at, readable_path
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.source import HITS, SCALES
from engram_cli.table.attributes import META, Description, read_description
from engram_cli.table.grid import DAMAGED, LOOKUP, SUMS, ChunkedArray, array_name

PIECE_BYTES = 2**20  # float32 values decoded while in the L2 cache


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStore(FileRows):
    """A finished table, a `RowSource`. `layout` is bound to the stored vocabulary map.

    `init`: the name of what filled the rows; `attributes`: those of the Zarr group; `arrays`: those
    of the store, by name.
    """

    dim: int
    dtype: str
    digest: str
    init: str
    attributes: Mapping[str, Any]
    arrays: Mapping[str, ChunkedArray]
    _opened: dict[str, FileArray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_hits(self) -> bool:
        """Whether there is a number of hits for each row."""
        return self.attributes["statistics"] is not None

    def _part(self, layer: int, part: str) -> FileArray | None:
        """Return the array of a part, made when first asked for: a table may have 100,000 files."""
        name = array_name(layer, part)
        if name not in self._opened and name in self.arrays:
            self._opened[name] = open_array(self.path, self.arrays[name])
        return self._opened.get(name)

    def values(
        self, layer: int | None = None, piece_rows: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, values float32[n, dim]) of a layer in order, `piece_rows` at a time.

        Constant memory: a piece is about 1 MiB where `piece_rows` is None, and new each time.
        Raises InputError, and ArtifactError for a file that cannot be read.
        """
        if piece_rows is not None and piece_rows < 1:
            raise InputError(f"{piece_rows} rows a piece", "give 1 or more")
        rows = self.layout.layer(layer).rows
        step = piece_rows or max(1, PIECE_BYTES // (4 * self.dim))
        for first in range(0, rows, step):
            piece = np.empty((min(step, rows - first), self.dim), dtype=np.float32)
            self.read(layer, first, piece)
            yield first, piece

    def rows(self, layer: int | None, indices: ArrayLike) -> NDArray[np.float32]:
        """Return the rows of a layer at `indices` [n], in any order, as float32[n, dim].

        Raises InputError for rows that the layer has not, ArtifactError for what cannot be read.
        """
        return self.vectors(layer, indices)

    def hits(self, layer: int | None = None) -> NDArray[np.uint32] | None:
        """Return how often the corpus looked each row up, uint32[rows]; None if not counted."""
        array = self.arrays.get(array_name(self.layout.layer(layer).layer, HITS))
        return None if array is None else open_array(self.path, array).read(0, array.rows)


def open_table(path: Path | str, *, patching: bool = False) -> TableStore:
    """Open a finished table: attributes, manifest and file sizes are checked, no row is read.

    `patching`: also one that is half-patched. Raises InputError when there is none, IncompleteError
    for a half-built one, ArtifactError for one that is damaged, tampered with or newer. Checksums
    are checked by `verify`.
    """
    about = read_description(readable_path(path), patching=patching)
    _check_sizes(about)
    layout = bound_layout(about)
    return TableStore(
        format="table",
        path=about.path,
        layout=layout,
        layers=layout.layer_ids,
        dim=about.dim,
        dtype=about.dtype,
        digest=str(about.attributes["digest"]),
        init=str(about.attributes["init"]["name"]),
        attributes=about.attributes,
        arrays=about.arrays,
    )


def open_array(store: Path, array: ChunkedArray) -> FileArray:
    """Return an array in the chunk files of the store at `store`, none of which is opened yet."""
    return FileArray(array.spans(store), array.dtype, array.shape[1:], DAMAGED)


def bound_layout(about: Description) -> HashLayout:
    """Return the layout with the store's own vocabulary map. Raises ArtifactError for another."""
    array = about.arrays.get(LOOKUP)
    if array is None:
        return about.layout
    try:
        lookup = open_array(about.path, array).read(0, array.rows)
        return about.layout.bind(cast("NDArray[np.int32]", lookup))
    except MismatchError:
        raise ArtifactError(f"{about.path / LOOKUP} is damaged", DAMAGED) from None


def zarr_metadata(arrays: list[ChunkedArray], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the zarr.json files of a store, by path: the group's, and one for each array."""
    import zarr
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    group = zarr.create_group(store=MemoryStore(files), attributes=dict(attributes))
    for array in arrays:
        shape, inner = array.chunk_shape, array.inner_rows
        names, about = described(array, str(attributes["dtype"]), int(attributes["dim"]))
        group.create_array(
            array.name,
            shape=array.shape,
            chunks=shape if inner is None else (inner, *shape[1:]),
            shards=None if inner is None else shape,
            dtype=array.dtype,
            compressors=None,
            filters=None,
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=names,
            attributes=about,
        )
    return {name: document.to_bytes() for name, document in files.items()}


def array_metadata(array: ChunkedArray) -> bytes:
    """Return the zarr.json of an array of kept sums."""
    return zarr_metadata([array], {"dtype": "float32", "dim": 1})[f"{array.name}/{META}"]


def described(array: ChunkedArray, dtype: str, dim: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of an array's dimensions, and attributes that say what it holds, for people
    and for programs that open it with Zarr alone.

    A name stands for one length in all arrays of the store.
    """
    group, _, number = array.name.rpartition("/")
    row_type, row = DTYPES.load(dtype), f"row_{number}"
    if group == SUMS and number == "documents":
        return ("document",), {"long_name": "XXH64 of each document that filled the rows"}
    if group == SUMS:
        about = {"long_name": f"count and sums of the vectors in each row of layer {number}"}
        return (row, "count_and_sums"), about
    if array.name == LOOKUP:
        return ("token_id",), {"long_name": "compressed id of each token id, -1 for none"}
    if group == HITS:
        return (row,), {"long_name": f"look-ups of each row of layer {number} in the corpus"}
    if group == SCALES:
        if row_type.of_layer:
            return ("layer_scale",), {"long_name": f"scale of all rows of layer {number}"}
        each = "row" if row_type.scaling and row_type.scaling.per == "row" else "block of a row"
        about = {"long_name": f"scale of each {each} of layer {number}", "logical_dtype": dtype}
        return (row, "block"), about
    if group:
        about = {"long_name": f"projection of the embeddings to the rows of layer {number}"}
        return (f"{group}_row_{number}", f"{group}_value"), about
    width = "value" if array.width == dim else "item"
    about = {
        "long_name": f"rows of layer {number}",
        "logical_dtype": dtype,
        "logical_width": str(dim),
        "stored_as": row_type.stored_as,
    }
    return (row, width), about


def _check_sizes(about: Description) -> None:
    look_at(about.path / name for name in about.files)
    for name, (size, _) in about.files.items():
        try:
            found = (about.path / name).stat().st_size
        except OSError as error:
            raise ArtifactError(
                f"{about.path / name} cannot be read: {error.strerror}", DAMAGED
            ) from None
        if found != size:
            raise ArtifactError(f"{about.path / name} has {found} bytes, not {size}", DAMAGED)

"""The rows of a layer in its chunk files: whole rows read, encoded and written in place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.rows.source import SCALES
from engram_cli.table.attributes import Description
from engram_cli.table.grid import DAMAGED, ChunkedArray, array_name
from engram_cli.table.sums import kernels

_MAPPED = 512  # chunk files mapped at a time: the system allows 65,530

Lines = list[NDArray[np.uint8]]
"""Rows as stored, and their scales where each has its own: uint8 [n, bytes] each."""


@dataclass(slots=True, kw_only=True, eq=False)
class LayerRows:
    """Rows of a layer of the table at `path`, stored in `arrays`: rows, and scales of rows.

    `changed`: the files that were written to.
    """

    path: Path
    row_type: RowType
    dim: int
    arrays: Sequence[ChunkedArray]
    changed: set[str] = field(default_factory=set)
    _maps: OrderedDict[str, NDArray[np.uint8]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, about: Description, layer: int) -> LayerRows:
        """Return the rows of a layer of a table."""
        row_type = DTYPES.load(about.dtype)
        arrays = [about.arrays[array_name(layer)]]
        if row_type.scaling is not None and not row_type.of_layer:
            arrays.append(about.arrays[array_name(layer, SCALES)])
        return cls(path=about.path, row_type=row_type, dim=about.dim, arrays=arrays)

    def encode(self, values: NDArray[np.float32], scale: NDArray[np.float32] | None) -> Lines:
        """Return `values` float32[n, dim] as they are stored; `scale`: float32[1] of the layer."""
        made: list[NDArray[Any]] = [
            np.empty((len(values), *array.shape[1:]), dtype=array.dtype) for array in self.arrays
        ]
        scales = made[1] if len(made) > 1 else scale
        self.row_type.encode(values, made[0], scales)
        return [part.view(np.uint8) for part in made]

    def read(self, rows: NDArray[np.int64]) -> Lines:
        """Return the rows at `rows` [n], ascending."""
        found = [np.empty((len(rows), array.row_bytes), dtype=np.uint8) for array in self.arrays]
        for array, out in zip(self.arrays, found, strict=True):
            for index, low, high in _by_chunk(array, rows):
                first = -index * array.chunk_rows
                kernels.load_lines(self._map(array, index), first, rows[low:high], out[low:high])
        return found

    def write(self, rows: NDArray[np.int64], lines: Lines) -> None:
        """Write the rows at `rows` [n], ascending."""
        for array, values in zip(self.arrays, lines, strict=True):
            for index, low, high in _by_chunk(array, rows):
                first = -index * array.chunk_rows
                self.changed.add(array.file(index))
                own = self._map(array, index)
                kernels.store_lines(own, first, rows[low:high], values[low:high])

    def _map(self, array: ChunkedArray, index: int) -> NDArray[np.uint8]:
        name = array.file(index)
        with self._lock:
            if name in self._maps:
                self._maps.move_to_end(name)
                return self._maps[name]
            try:
                shape = array.chunk_rows, array.row_bytes
                made = np.memmap(self.path / name, dtype=np.uint8, mode="r+", shape=shape)
            except (OSError, ValueError) as error:
                raise ArtifactError(
                    f"{self.path / name} cannot be read: {error}", DAMAGED
                ) from None
            self._maps[name] = made
            if len(self._maps) > _MAPPED:
                self._maps.popitem(last=False)
            return made


def stored_scale(about: Description, layer: int) -> NDArray[np.float32] | None:
    """Return the scale float32[1] of a layer that has one for all rows, else None."""
    if not DTYPES.load(about.dtype).of_layer:
        return None
    file = about.path / about.arrays[array_name(layer, SCALES)].file(0)
    return np.fromfile(file, dtype="<f4", count=1).astype(np.float32, copy=False)


def _by_chunk(array: ChunkedArray, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk, begin, end): the part of `rows` [n], ascending, that lies in each chunk."""
    low = 0
    while low < len(rows):
        index = int(rows[low]) // array.chunk_rows
        high = low + int(np.searchsorted(rows[low:], (index + 1) * array.chunk_rows))
        yield index, low, high
        low = high

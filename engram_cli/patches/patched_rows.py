"""Reads a base as if patches were applied to it, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.patches.patch import LayerPatch
from engram_cli.patches.stack import Stack
from engram_cli.rows.source import HITS, ROWS, SCALES, Span
from engram_cli.rows.views import SourceView

_PIECE_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedRows(SourceView):
    """The rows of a source with those of a `stack` of patches in their place.

    Methods raise as those of the source. All of them may run in threads.
    """

    stack: Stack

    def spans(self, layer: int, part: str = ROWS) -> tuple[Span, ...]:
        """Return the spans of files of a part that no patch changes; () for the others."""
        return () if self._changes(layer, part) is not None else self.source.spans(layer, part)

    def chunks(self, layer: int, part: str = ROWS) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, [n, ...] as stored) in pieces, ascending."""
        if self._changes(layer, part) is None:
            yield from self.source.chunks(layer, part)
            return
        rows = self.layout.layer(layer).rows
        step = max(1, _PIECE_BYTES // self.row_type.row_bytes(self.dim or 0))
        for first in range(0, rows, step):
            yield first, self.lines(layer, part, first, min(step, rows - first))

    def lines(self, layer: int, part: str, first: int, count: int) -> NDArray[Any]:
        """Read `count` rows of a part from `first` on, as stored: [count, ...]."""
        own = self._changes(layer, part)
        read = self.source.lines(layer, part, first, count)
        if own is None:
            return read
        ids, values = own
        begin, end = np.searchsorted(ids, [first, first + count]).tolist()
        if begin == end:
            return read
        read = np.array(read)
        read[ids[begin:end] - first] = values[begin:end]
        return read

    def stored(self, layer: int, ids: ArrayLike) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows [n, width] at `ids` [n] as stored, and their scales."""
        rows, scales = self.source.stored(layer, ids)
        wanted = np.asarray(ids)
        rows = self._replaced(layer, ROWS, wanted, rows)
        return rows, None if scales is None else self._replaced(layer, SCALES, wanted, scales)

    def vectors(self, layer: int, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the rows at `ids` [n], in any order, as float32[n, dim]."""
        return self.decoded(*self.stored(layer, ids))

    def read(self, layer: int, first: int, values: NDArray[np.float32]) -> None:
        """Read the rows from `first` on into `values` float32[n, dim], contiguous."""
        rows = self.lines(layer, ROWS, first, len(values))
        scaled = self.row_type.scaling is not None
        scales = self.lines(layer, SCALES, first, len(values)) if scaled else None
        self.row_type.decode(rows, scales, values)

    def _changes(self, layer: int, part: str) -> tuple[NDArray[np.int64], NDArray[Any]] | None:
        """Return row numbers and what is stored at them in a part; None where no patch has any."""
        own: LayerPatch | None = self.stack.layers.get(layer)
        if own is None or part == HITS:
            return None
        values = own.rows if part == ROWS else own.row_scales
        return None if values is None else (own.ids, values)

    def _replaced(
        self, layer: int, part: str, wanted: NDArray[np.integer], read: NDArray[Any]
    ) -> NDArray[Any]:
        own = self._changes(layer, part)
        if own is None:
            return read
        ids, values = own
        places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        here = ids[places] == wanted
        if not here.any():
            return read
        read = np.array(read)
        read[here] = values[places[here]]
        return read

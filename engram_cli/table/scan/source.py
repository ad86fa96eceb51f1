"""Reads a layer of a `RowSource` in ranges of one column's rows, as bytes that are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.files import preadv
from engram_cli.remote.path import is_remote
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import DAMAGED
from engram_cli.rows.source import HITS, SCALES, RowSource, Span
from engram_cli.table.scan.kernels import norms
from engram_cli.table.scan.kernels.lanes import ITEMS

RANGE_BYTES = 32 * 2**20  # read by one thread, one after another
PIECE_BYTES = 2**19  # read and measured while it is in the L2 cache
DECODED_BYTES = 2**21  # of values: each piece costs a call of the codec
WORD = 8  # bytes
NO_FACTORS = np.empty(0, dtype=np.float32)
NO_HITS = np.empty(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Rows of one column, all in one span."""

    column: int
    span: Span
    first: int
    rows: int


class LayerReader:
    """Reads a layer of `source` in ranges, as its rows are measured.

    Rows are measured as they are stored (`direct`) where they are whole words and whole blocks of
    items, one after another; else as float32. `row_bytes` are those of a row as it is measured,
    whole words; `kind` is what it holds, as the kernels say it; `row_scales` its own scales.
    `counted`: what has the hits of the rows where the source has none; None for nothing.
    """

    def __init__(self, source: RowSource, layer: int, counted: RowSource | None = None) -> None:
        assert source.dim is not None
        assert source.dtype is not None
        self.source, self.layer = source, layer
        self.counted = source if source.has_hits else counted
        self.dim, self._row_type = source.dim, DTYPES.load(source.dtype)
        self.stored_row_bytes = self._row_type.record_layout(self.dim).row_bytes
        whole = Span(file=source.path, begin=0, first=0, rows=source.layout.layer(layer).rows)
        spans = source.spans(layer)
        self.spans = spans or (whole,)
        scaling, items = self._row_type.scaling, self._row_type.items.name
        self.direct = (
            bool(spans)
            and not any(is_remote(span.file) for span in spans)
            and items in norms.NORM_KINDS
            and self.stored_row_bytes % WORD == 0
            and all(span.stride in (0, self.stored_row_bytes) for span in spans)
            and (scaling is None or self.dim % ITEMS == 0)
        )
        self.row_bytes = self.stored_row_bytes if self.direct else 4 * (self.dim + self.dim % 2)
        self.kind = norms.NORM_KINDS[items] if self.direct else norms.FLOAT32
        self.row_scales = 0
        if self.direct and scaling is not None and scaling.per != "layer":
            self.row_scales = scaling.width(self.dim)
        # What fits the cache.
        self.piece_rows = max(1, (PIECE_BYTES if self.direct else DECODED_BYTES) // self.row_bytes)

    def factors(self, first: int, count: int) -> NDArray[np.float32]:
        """Return the scales of rows from `first` on as float32; the one of the layer; or none.

        Raises ArtifactError for a file that cannot be read. May run in threads.
        """
        if not self.direct or self._row_type.scaling is None:
            return NO_FACTORS
        factors = self._row_type.widen(self.source.lines(self.layer, SCALES, first, count))
        return np.ascontiguousarray(factors.reshape(-1), dtype=np.float32)

    def hits(self, first: int, count: int) -> NDArray[np.uint32]:
        """Return the hits of `count` rows from `first` on; none where nothing counted them."""
        if self.counted is None:
            return NO_HITS
        return self.counted.lines(self.layer, HITS, first, count)

    def row_ranges(
        self, columns: Sequence[tuple[int, int]], step: int | None = None
    ) -> Iterator[RowRange]:
        """All rows of the columns, each (first row, rows), cut at files and at `step` rows.

        `step` None is `RANGE_BYTES`.
        """
        step = step or max(1, RANGE_BYTES // self.stored_row_bytes)
        for column, (begin, rows) in enumerate(columns):
            for span in self.spans:
                low, high = max(begin, span.first), min(begin + rows, span.first + span.rows)
                for first in range(low, high, step):
                    yield RowRange(
                        column=column, span=span, first=first, rows=min(step, high - first)
                    )

    def pieces(self, row_range: RowRange, buffer: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes [n, row_bytes] of a range in pieces, in `buffer` [piece_rows, row_bytes].

        Raises ArtifactError for a file that cannot be read or is too short.
        """
        if not self.direct:
            for first in range(row_range.first, row_range.first + row_range.rows, len(buffer)):
                piece = buffer[: min(len(buffer), row_range.first + row_range.rows - first)]
                self._decoded(first, piece)
                yield piece
            return
        row_bytes, file = self.row_bytes, row_range.span.file
        begin = row_range.span.begin + (row_range.first - row_range.span.first) * row_bytes
        with _opened(file) as handle:
            for done in range(0, row_range.rows, len(buffer)):
                piece = buffer[: min(len(buffer), row_range.rows - done)]
                _read(handle, piece, begin + done * row_bytes, file)
                yield piece

    def taken(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the rows [n, row_bytes] at `ids` int64[n] as they are measured, and `factors`.

        Raises as `pieces`.
        """
        if not self.direct:
            values = np.zeros((len(ids), self.row_bytes // 4), dtype=np.float32)
            values[:, : self.dim] = self.source.vectors(self.layer, ids)
            return values.view(np.uint8), NO_FACTORS
        rows, scales = self.source.stored(self.layer, ids)
        items = np.ascontiguousarray(rows).reshape(len(ids), -1).view(np.uint8)
        if scales is None:
            return items, NO_FACTORS
        return items, np.ascontiguousarray(self._row_type.widen(scales).reshape(-1), np.float32)

    def hits_at(self, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the hits of the rows at `ids`; none where nothing counted them."""
        return NO_HITS if self.counted is None else self.counted.hits_at(self.layer, ids)

    def _decoded(self, first: int, piece: NDArray[np.uint8]) -> None:
        """Decode rows from `first` on into `piece` [n, row_bytes]; a value that fills up is 0.

        Raises as `pieces`.
        """
        values = piece.view(np.float32)
        if values.shape[1] == self.dim:
            self.source.read(self.layer, first, values)
            return
        own = np.empty((len(piece), self.dim), dtype=np.float32)
        self.source.read(self.layer, first, own)
        values[:, : self.dim] = own
        values[:, self.dim :] = 0


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}", DAMAGED) from None
    try:
        yield handle
    finally:
        os.close(handle)


def _read(handle: int, piece: NDArray[Any], offset: int, file: Path) -> None:
    target = piece.reshape(-1).view(np.uint8).data
    read_at = getattr(os, "preadv", preadv)
    while target:
        try:
            read = read_at(handle, [target], offset)
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}", DAMAGED) from None
        if not read:
            raise ArtifactError(f"{file} ends too early", DAMAGED)
        target, offset = target[read:], offset + read

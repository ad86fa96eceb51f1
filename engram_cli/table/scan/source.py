"""Where a layer's rows lie: files and offsets in, ranges of one column's rows out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.table.grid import row_array
from engram_cli.table.reading import DAMAGED
from engram_cli.table.scan.kernels import norms
from engram_cli.table.scan.kernels.lanes import ITEMS
from engram_cli.table.store import TableStore

RANGE_BYTES = 32 * 2**20  # read by one thread, one after another
PIECE_BYTES = 2**19  # read and measured while it is in the L2 cache
DECODED_BYTES = 2**21  # of values: each piece costs a call of the codec
WORD = 8  # bytes
NO_FACTORS = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows `first` to `first + rows` of a layer: in `file`, from byte `offset` on."""

    file: Path
    offset: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Rows of one column, all in one span."""

    column: int
    span: Span
    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """A layer's rows of `dim` values stored as `dtype`, in `spans`, ascending.

    `decode(first, values)` reads rows as float32; it is used where a row cannot be measured from
    its stored bytes. `scales(first, count)` gives stored scales [count, ...], or the one [1] of the
    layer; None where the dtype has none. `hits(first, count)` gives uint32, None where there are
    none.
    """

    layer: int
    dim: int
    dtype: str
    spans: tuple[Span, ...]
    decode: Callable[[int, NDArray[np.float32]], None]
    scales: Callable[[int, int], NDArray[Any]] | None = None
    hits: Callable[[int, int], NDArray[np.uint32]] | None = None

    @property
    def row_type(self) -> RowType:
        """How rows are stored."""
        return DTYPES.load(self.dtype)

    @property
    def stored_row_bytes(self) -> int:
        """The bytes of a row's items, scales left out."""
        return self.row_type.record_layout(self.dim).row_bytes

    @property
    def direct(self) -> bool:
        """Whether rows are measured as they are stored: whole words, and whole blocks of items."""
        if self.row_type.items.name not in norms.KINDS or self.stored_row_bytes % WORD:
            return False
        return self.row_type.scaling is None or self.dim % ITEMS == 0

    @property
    def row_bytes(self) -> int:
        """The bytes of a row as it is measured, whole words."""
        return self.stored_row_bytes if self.direct else 4 * (self.dim + self.dim % 2)

    @property
    def kind(self) -> int:
        """What a row holds as it is measured, as the kernels say it."""
        return norms.KINDS[self.row_type.items.name] if self.direct else norms.FLOAT32

    @property
    def row_scales(self) -> int:
        """How many scales of its own a row is measured with."""
        scaling = self.row_type.scaling
        if not self.direct or scaling is None or scaling.per == "layer":
            return 0
        return scaling.width(self.dim)

    def factors(self, first: int, count: int) -> NDArray[np.float32]:
        """The scales of rows from `first` on, one after another; the one of the layer; or none.

        Raises ArtifactError for a file that cannot be read. May run in threads.
        """
        if not self.direct or self.scales is None:
            return NO_FACTORS
        factors = self.row_type.widen(self.scales(first, count))
        return np.ascontiguousarray(factors.reshape(-1), dtype=np.float32)

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

    @property
    def piece_rows(self) -> int:
        """The rows of a piece: what fits the cache."""
        return max(1, (PIECE_BYTES if self.direct else DECODED_BYTES) // self.row_bytes)

    def pieces(self, row_range: RowRange, buffer: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """The bytes [n, row_bytes] of a range, one after another, read or decoded into `buffer`
        [piece_rows, row_bytes].

        Raises ArtifactError for a file that cannot be read or is too short.
        """
        if not self.direct:
            for first in range(row_range.first, row_range.first + row_range.rows, len(buffer)):
                piece = buffer[: min(len(buffer), row_range.first + row_range.rows - first)]
                self._decoded(first, piece)
                yield piece
            return
        row_bytes, file = self.row_bytes, row_range.span.file
        begin = row_range.span.offset + (row_range.first - row_range.span.first) * row_bytes
        with _opened(file) as handle:
            for done in range(0, row_range.rows, len(buffer)):
                piece = buffer[: min(len(buffer), row_range.rows - done)]
                _read(handle, piece, begin + done * row_bytes, file)
                yield piece

    def _decoded(self, first: int, piece: NDArray[np.uint8]) -> None:
        """Decode rows from `first` on into `piece` [n, row_bytes]; a value that fills up is 0.

        Raises as `pieces`.
        """
        values = piece.view(np.float32)
        if values.shape[1] == self.dim:
            self.decode(first, values)
            return
        own = np.empty((len(piece), self.dim), dtype=np.float32)
        self.decode(first, own)
        values[:, : self.dim] = own
        values[:, self.dim :] = 0


def table_source(table: TableStore, layer: int) -> RowSource:
    """The rows of a layer of a table, with its own hits where it has some."""
    array = table.arrays[row_array(layer)]
    spans = []
    for index in range(array.chunks):
        first, rows = array.span(index)
        spans.append(Span(file=table.path / array.file(index), offset=0, first=first, rows=rows))
    counted = table.attributes["statistics"] is not None
    return RowSource(
        layer=layer,
        dim=table.dim,
        dtype=table.dtype,
        spans=tuple(spans),
        decode=lambda first, values: table.read(layer, first, values),
        scales=(
            None
            if table.row_type.scaling is None
            else lambda first, count: table.read_scales(layer, first, count)
        ),
        hits=(lambda first, count: table.read_hits(layer, first, count)) if counted else None,
    )


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
    while target:
        try:
            read = os.preadv(handle, [target], offset)
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}", DAMAGED) from None
        if not read:
            raise ArtifactError(f"{file} ends too early", DAMAGED)
        target, offset = target[read:], offset + read

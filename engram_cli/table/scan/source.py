"""Where a layer's rows lie: files and offsets in, stretches of one column's rows out."""

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
from engram_cli.table.codecs import CODECS
from engram_cli.table.grid import row_array
from engram_cli.table.reading import DAMAGED
from engram_cli.table.scan import kernels
from engram_cli.table.store import TableStore

STRETCH_BYTES = 32 * 2**20  # read by one thread, one after another
PIECE_BYTES = 2**19  # read and measured while it is in the L2 cache

Measure = Callable[..., None]
_MEASURES: dict[str, Measure] = {
    "float32": kernels.measure_float32,
    "float16": kernels.measure_float16,
    "bfloat16": kernels.measure_bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows `first` to `first + rows` of a layer: in `file`, from byte `offset` on."""

    file: Path
    offset: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Rows of one column, all in one span."""

    column: int
    span: Span
    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """A layer's rows of `dim` values stored as `dtype`, in `spans`, ascending.

    `decode(first, values)` reads rows as float32; it is used where a row cannot be measured from
    its stored words. `hits(first, count)` gives uint32, None where there are none.
    """

    layer: int
    dim: int
    dtype: str
    spans: tuple[Span, ...]
    decode: Callable[[int, NDArray[np.float32]], None]
    hits: Callable[[int, int], NDArray[np.uint32]] | None = None

    @property
    def stored_row_bytes(self) -> int:
        """The bytes of a row's items, scales left out."""
        codec = CODECS.load(self.dtype)
        return codec.width(self.dim) * codec.physical.itemsize

    @property
    def direct(self) -> bool:
        """Whether rows are measured as they are stored: floats in an even number of words."""
        return self.dtype in _MEASURES and self.stored_row_bytes % 8 == 0

    @property
    def words(self) -> int:
        """The 32-bit words of a row as it is measured, even."""
        return self.stored_row_bytes // 4 if self.direct else self.dim + self.dim % 2

    @property
    def measure(self) -> Measure:
        """The kernel for the rows as `pieces` gives them."""
        return _MEASURES[self.dtype if self.direct else "float32"]

    def stretches(self, columns: Sequence[tuple[int, int]]) -> Iterator[Stretch]:
        """All rows of the columns, each (first row, rows), cut at files and at `STRETCH_BYTES`."""
        step = max(1, STRETCH_BYTES // self.stored_row_bytes)
        for column, (begin, rows) in enumerate(columns):
            for span in self.spans:
                low, high = max(begin, span.first), min(begin + rows, span.first + span.rows)
                for first in range(low, high, step):
                    yield Stretch(
                        column=column, span=span, first=first, rows=min(step, high - first)
                    )

    @property
    def piece_rows(self) -> int:
        """The rows of a piece: what fits the cache."""
        return max(1, PIECE_BYTES // (4 * self.words))

    def pieces(
        self, stretch: Stretch, buffer: NDArray[np.uint32]
    ) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """(first row, words [n, 2, half]) of a stretch, read into `buffer` [piece_rows, 2, half].

        Raises ArtifactError for a file that cannot be read or is too short.
        """
        if not self.direct:
            yield from self._decoded(stretch, buffer)
            return
        row_bytes, end = 4 * self.words, stretch.first + stretch.rows
        with _opened(stretch.span.file) as file:
            for first in range(stretch.first, end, len(buffer)):
                piece = buffer[: min(len(buffer), end - first)]
                offset = stretch.span.offset + (first - stretch.span.first) * row_bytes
                _read(file, piece, offset, stretch.span.file)
                yield first, piece

    def _decoded(
        self, stretch: Stretch, buffer: NDArray[np.uint32]
    ) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        values = buffer.view(np.float32).reshape(len(buffer), self.words)
        padded = self.words != self.dim
        own = np.empty((len(buffer), self.dim), dtype=np.float32) if padded else values
        for first in range(stretch.first, stretch.first + stretch.rows, len(buffer)):
            count = min(len(buffer), stretch.first + stretch.rows - first)
            self.decode(first, own[:count])
            if padded:
                values[:count, : self.dim] = own[:count]
            yield first, buffer[:count]


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

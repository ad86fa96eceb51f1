"""Where a layer's rows lie: files and offsets in, stretches of one column's rows out."""

from __future__ import annotations

import mmap
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
from engram_cli.table.gather import SAMPLE
from engram_cli.table.grid import row_array
from engram_cli.table.kernels import rows_in_memory
from engram_cli.table.reading import DAMAGED
from engram_cli.table.scan import kernels
from engram_cli.table.store import TableStore

STRETCH_BYTES = 32 * 2**20  # read by one thread, one after another
PIECE_BYTES = 2**19  # read and measured while it is in the L2 cache
DECODED_BYTES = 2**21  # of values: each piece costs a call of the codec

_KINDS = {
    "float32": kernels.FLOAT32,
    "float16": kernels.FLOAT16,
    "bfloat16": kernels.BFLOAT16,
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
        return self.dtype in _KINDS and self.stored_row_bytes % 8 == 0

    @property
    def words(self) -> int:
        """The 32-bit words of a row as it is measured, even."""
        return self.stored_row_bytes // 4 if self.direct else self.dim + self.dim % 2

    @property
    def kind(self) -> int:
        """What the words of a row hold, as the kernels say it."""
        return _KINDS[self.dtype] if self.direct else kernels.FLOAT32

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
        size = PIECE_BYTES if self.direct else DECODED_BYTES
        return max(1, size // (4 * self.words))

    def pieces(self, stretch: Stretch, buffer: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
        """The words [n, 2, half] of a stretch, one after another: mapped whole where they are in
        memory, else read or decoded into `buffer` [piece_rows, 2, half].

        Raises ArtifactError for a file that cannot be read or is too short.
        """
        if not self.direct:
            for first in range(stretch.first, stretch.first + stretch.rows, len(buffer)):
                piece = buffer[: min(len(buffer), stretch.first + stretch.rows - first)]
                self._decoded(first, piece)
                yield piece
            return
        row_bytes, file = self.stored_row_bytes, stretch.span.file
        begin = stretch.span.offset + (stretch.first - stretch.span.first) * row_bytes
        with _opened(file) as handle:
            mapped = map_words(handle, begin, stretch.rows * row_bytes)
            if mapped is not None:
                yield mapped.reshape(stretch.rows, 2, -1)
                return
            for done in range(0, stretch.rows, len(buffer)):
                piece = buffer[: min(len(buffer), stretch.rows - done)]
                _read(handle, piece, begin + done * row_bytes, file)
                yield piece

    def _decoded(self, first: int, words: NDArray[np.uint32]) -> None:
        """Decode rows from `first` on into `words` [n, 2, half]; a value that fills up is 0.

        Raises as `pieces`.
        """
        values = words.view(np.float32).reshape(len(words), self.words)
        if self.words == self.dim:
            self.decode(first, values)
            return
        own = np.empty((len(words), self.dim), dtype=np.float32)
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
        hits=(lambda first, count: table.read_hits(layer, first, count)) if counted else None,
    )


def map_words(handle: int, begin: int, size: int) -> NDArray[np.uint32] | None:
    """Bytes of an opened file as words: mapped, not copied, where a sample of them is in memory.

    None where they are not: there a read tells of the disk's errors, a mapped page ends the process
    (unlikely, not impossible, for pages outside the sample). None too where the file is shorter or
    they lie askew.
    """
    if begin % 4 or os.fstat(handle).st_size < begin + size:
        return None
    skipped = begin % mmap.ALLOCATIONGRANULARITY
    try:  # a copy on write, that is never written, since kernels take writable arrays
        mapped = mmap.mmap(handle, skipped + size, access=mmap.ACCESS_COPY, offset=begin - skipped)
    except (OSError, ValueError):
        return None
    content = np.frombuffer(mapped, dtype=np.uint8)
    pages = len(content) // mmap.PAGESIZE
    sample = np.linspace(0, max(pages - 1, 0), min(SAMPLE, pages + 1)).astype(np.int64)
    base = np.array([content.ctypes.data], dtype=np.uint64)
    known = rows_in_memory(base, sample, len(content), mmap.PAGESIZE, mmap.PAGESIZE)
    return content[skipped:].view(np.uint32) if known == len(sample) else None


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

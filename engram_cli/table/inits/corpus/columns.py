"""Fills the columns of a pass: partitions pairs when a row is first asked for, frees them after the
last.

In: the pairs of each order, and what columns a pass covers. Out: rows. Few columns are held at a
time, and their memory is used again: on a virtual machine, fresh pages took 11 to 19 ns for the 8
bytes of an entry that 12 ns were enough to hash, deal out, sort and sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.inits.base import Span
from engram_cli.table.inits.corpus.buckets import ColumnPart

Deal = Callable[[Mapping[int, Span]], dict[int, ColumnPart]]


class BufferPool:
    """Keeps buffers for reuse."""

    def __init__(self) -> None:
        """Start without buffers."""
        self._lock = Lock()
        self._free: list[NDArray[np.uint64]] = []

    def take(self, size: int) -> NDArray[np.uint64]:
        """Return the smallest free buffer of at least `size` numbers. If there is none, make a new
        one in place of the largest."""
        with self._lock:
            self._free.sort(key=len)
            for index, buffer in enumerate(self._free):
                if len(buffer) >= size:
                    return self._free.pop(index)
            if self._free:
                self._free.pop()
        return np.empty(size + size // 16, dtype=np.uint64)

    def give(self, buffer: NDArray[np.uint64]) -> None:
        """Return a buffer of `take` to the pool."""
        with self._lock:
            self._free.append(buffer)


@dataclass(slots=True)
class _Group:
    """Columns partitioned together; `left`: rows of each that were not asked for yet."""

    spans: dict[int, Span]
    left: dict[int, int]
    lock: Lock
    parts: dict[int, ColumnPart] | None = None

    def fill(self, column: int, first: int, out: NDArray[np.float32], deal: Deal) -> bool:
        """Write rows of a column into `out`; whether those were its last ones."""
        with self.lock:
            if self.parts is None:
                self.parts = deal(self.spans)
            part = self.parts[column]
        part.fill(first, out)
        with self.lock:
            self.left[column] -= len(out)
            return not self.left[column]

    def release(self, column: int) -> NDArray[np.uint64]:
        """The buffer of a column of which all rows were asked for."""
        assert self.parts is not None
        with self.lock:
            return self.parts.pop(column).release()


class PartitionedColumns:
    """Fills some rows of some columns."""

    def __init__(
        self, groups: Sequence[Mapping[int, Span]], deal: Deal, buffer_pool: BufferPool
    ) -> None:
        """`groups`: the rows of columns that are dealt out together by `deal`, by column; those of
        one column may lie in several, ascending."""
        self._deal, self._buffer_pool = deal, buffer_pool
        self._groups: dict[int, list[_Group]] = {}
        for spans in groups:
            left = {column: end - begin for column, (begin, end) in spans.items()}
            group = _Group(dict(spans), left, Lock())
            for column in spans:
                self._groups.setdefault(column, []).append(group)

    def parts(self) -> dict[int, PartitionedColumn]:
        """What fills each column."""
        return {column: PartitionedColumn(self, column) for column in self._groups}

    def fill(self, column: int, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` (counted in the column) into `out` float32[n, w].

        A row may be asked for once.
        """
        for group in self._groups[column]:
            begin, end = group.spans[column]
            low, high = max(first, begin), min(first + len(out), end)
            if low < high and group.fill(column, low, out[low - first : high - first], self._deal):
                self._buffer_pool.give(group.release(column))


@dataclass(frozen=True, slots=True)
class PartitionedColumn:
    """Fills one column of `PartitionedColumns`."""

    columns: PartitionedColumns
    column: int

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` (counted in the column) into `out` float32[n, w]."""
        self.columns.fill(self.column, first, out)

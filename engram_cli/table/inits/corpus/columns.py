"""Fills the columns of a pass: makes them when a row is first asked for, frees them after the last.

Few columns are held at a time, and their memory is used again: on a virtual machine, fresh pages
took 11 to 19 ns for the 8 bytes of an entry that 12 ns were enough to hash, deal out, sort and sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.inits.base import Span

P = TypeVar("P", bound="Part")


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


class Part(Protocol):
    """Some rows of a column."""

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` (counted in the column) into `out` float32[n, w]."""


@dataclass(slots=True)
class _Group(Generic[P]):
    """Columns partitioned together; `left`: rows of each that were not asked for yet."""

    spans: Mapping[int, Span]
    left: dict[int, int]
    lock: Lock
    parts: dict[int, P] | None = None


class PartitionedColumns(Generic[P]):
    """Fills some rows of some columns, each of which may be asked for once."""

    def __init__(
        self,
        groups: Sequence[Mapping[int, Span]],
        deal: Callable[[Mapping[int, Span]], dict[int, P]],
        release: Callable[[P], None],
    ) -> None:
        """`groups`: the rows of columns that `deal` makes together, by column; those of one column
        may lie in several, ascending. `release` gets a part after its last row."""
        self._deal, self._release = deal, release
        self._groups: dict[int, list[_Group[P]]] = {}
        for spans in groups:
            left = {column: end - begin for column, (begin, end) in spans.items()}
            group: _Group[P] = _Group(spans, left, Lock())
            for column in spans:
                self._groups.setdefault(column, []).append(group)

    def fill(self, column: int, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` (counted in the column) into `out` float32[n, w]."""
        for group in self._groups[column]:
            begin, end = group.spans[column]
            low, high = max(first, begin), min(first + len(out), end)
            if low < high:
                self._fill(group, column, low, out[low - first : high - first])

    def _fill(self, group: _Group[P], column: int, first: int, out: NDArray[np.float32]) -> None:
        with group.lock:
            if group.parts is None:
                group.parts = self._deal(group.spans)
            part = group.parts[column]
        part.fill(first, out)
        with group.lock:
            group.left[column] -= len(out)
            if group.left[column]:
                return
            del group.parts[column]
        self._release(part)

"""Makes the rows of columns from pairs: parts the pairs by row, and sums them when asked for.

Pairs are dealt out into buckets of rows. A bucket is small enough to be sorted by row in a cache,
so that the sums of a row stay in registers. Few columns are held at a time, and their memory is
used again: on a virtual machine, fresh pages took 11 to 19 ns for the 8 bytes of an entry that
12 ns were enough to hash, deal out, sort and sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan
from engram_cli.jit import LANES
from engram_cli.table.inits.base import Span
from engram_cli.table.inits.corpus import kernels

# 646,400 rows and 12 M pairs: 316 buckets are dealt out to in 6 ns a pair, 632 in 11.
_BUCKET_BITS = 11
_MOST_BUCKETS = 2**9
_BLOCK = 2**15  # pairs that stay in the L2 cache while every column takes them

Take = Callable[[int], NDArray[np.uint64]]
P = TypeVar("P", bound="Part")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnVectors:
    """The vectors int16[V, w] of a column, their scale, and their mean float64[w] to subtract.

    `total` int64[w]: the sum that the mean was made from.
    """

    values: NDArray[np.int16]
    scale: float
    mean: NDArray[np.float64]
    total: NDArray[np.int64]


class ColumnPart:
    """Makes the rows begin..end-1 of a column. All pairs must be measured, then dealt out, both by
    shares that different threads may take.

    `records` int64[rows of the column, 1 + w]: where count and sums of each row are kept too.
    """

    def __init__(self, plan: LayerPlan, column: int, span: Span, vectors: ColumnVectors) -> None:
        begin, end = span
        self._begin, self._rows = begin, end - begin
        self.shift = bucket_bits(self._rows)
        hashed = int(plan.moduli[column]), int(plan.salts[column]), bool(plan.fast[column])
        self._where = (*hashed, begin, end, self.shift)
        self._own, self._values = vectors, _padded(vectors.values)
        self._ends = np.zeros((self._rows - 1 >> self.shift) + 1, dtype=np.int64)
        self._entries = np.empty(0, dtype=np.uint64)
        self._sorted = _Sorted()
        self.records: NDArray[np.int64] | None = None

    @property
    def buckets(self) -> int:
        """The number of buckets of rows."""
        return len(self._ends)

    def measure(self, pairs: NDArray[np.uint64], sizes: NDArray[np.int64]) -> None:
        """Add the room that pairs [2 * n] of a share take to its `sizes` [buckets]."""
        kernels.bucket_sizes(pairs, *self._where, sizes)

    def reserve(self, sizes: NDArray[np.int64], take: Take) -> NDArray[np.int64]:
        """Make room for all that was measured, `sizes` [shares, buckets]; return the first places
        of each share in each bucket."""
        whole = sizes.sum(axis=0)
        np.cumsum(whole, out=self._ends)
        self._entries = take(int(whole.sum()))
        places: NDArray[np.int64] = self._ends - whole + np.cumsum(sizes, axis=0) - sizes
        return places

    def release(self) -> NDArray[np.uint64]:
        """Return the room that was taken; no row can be made any more."""
        entries, self._entries = self._entries, np.empty(0, dtype=np.uint64)
        return entries

    def deal(self, pairs: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        """Take pairs [2 * n] of a share that was measured; `places`: its next ones."""
        kernels.deal(pairs, *self._where, places, self._entries)

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` (counted in the column) into `out` float32[n, w]."""
        height, own = 1 << self.shift, self._own
        at, last, base = first - self._begin, first - self._begin + len(out), first - self._begin
        while at < last:
            bucket = at >> self.shift
            inside = at - (bucket << self.shift)
            count = min(height - inside, last - at)
            values, begins = self.by_row(bucket)
            target = out[at - base : at - base + count]
            begins = begins[inside:]
            if self.records is None:
                kernels.fill_rows(values, begins, self._values, own.mean, own.scale, target)
            else:
                where = self._begin + at
                self._keep(values, begins, self.records[where : where + count], target)
            at += count

    def _keep(
        self,
        values: NDArray[np.uint32],
        begins: NDArray[np.int32],
        records: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> None:
        records[:] = 0
        kernels.add_rows(values, begins, np.arange(len(out)), self._values, 1, records)
        kernels.finish(records, self._own.mean, self._own.scale, out)

    def add(self, records: NDArray[np.int64]) -> None:
        """Add all counts and sums to `records` int64[end - begin, 1 + w]."""
        for bucket in range(len(self._ends)):
            own = records[bucket << self.shift : bucket + 1 << self.shift]
            values, begins = self.by_row(bucket)
            kernels.add_rows(values, begins, np.arange(len(own)), self._values, 1, own)

    def by_row(self, bucket: int) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
        """Return the values of a bucket by row, and where those of each row begin.

        A thread keeps its last bucket: rows are asked for in pieces that do not end where buckets
        do.
        """
        kept = self._sorted
        if kept.bucket != bucket:
            begin = int(self._ends[bucket - 1]) if bucket else 0
            entries = self._entries[begin : int(self._ends[bucket])]
            if len(kept.values) < len(entries):  # new pages take as long as sorting
                kept.values = np.empty(len(entries) + len(entries) // 4, dtype=np.uint32)
            if not len(kept.begins):
                kept.begins = np.empty((1 << self.shift) + 2, dtype=np.int32)
            kernels.sort_bucket(entries, kept.begins, kept.values)
            kept.bucket = bucket
        return kept.values, kept.begins


class _Sorted(local):
    """The bucket that a thread sorted last: its number, values, and where each row begins."""

    bucket = -1
    values = np.empty(0, dtype=np.uint32)
    begins = np.empty(0, dtype=np.int32)


def deal_out(
    blocks: Sequence[NDArray[np.uint64]],
    plan: LayerPlan,
    spans: Mapping[int, Span],
    vectors: Mapping[int, ColumnVectors],
    take: Take,
    threads: int = 1,
) -> dict[int, ColumnPart]:
    """Return the parts of some columns of an order, from the pairs [2 * n] of `blocks`.

    `take` gives memory for a number of uint64, or more. Each thread takes a share of the pairs.
    """
    parts = {c: ColumnPart(plan, c, span, vectors[c]) for c, span in spans.items()}
    sizes = {
        column: np.zeros((threads, part.buckets), dtype=np.int64) for column, part in parts.items()
    }

    def measure(share: int) -> None:
        for block in _cut(blocks, share, threads):
            for column, part in parts.items():
                part.measure(block, sizes[column][share])

    def deal(share: int) -> None:
        for block in _cut(blocks, share, threads):
            for column, part in parts.items():
                part.deal(block, places[column][share])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(measure, range(threads)))
        places = {column: part.reserve(sizes[column], take) for column, part in parts.items()}
        list(pool.map(deal, range(threads)))
    return parts


def summed_rows(
    blocks: Iterable[NDArray[np.uint64]],
    plan: LayerPlan,
    column: int,
    span: Span,
    vectors: ColumnVectors,
    *,
    most: int,
) -> NDArray[np.float32]:
    """Return float32[n, w]: the rows of `span` of a column, from any number of pairs [2 * n].

    The records of all rows are kept, 8 bytes a value; about `most` pairs are added at a time.
    """
    rows, width = span[1] - span[0], vectors.values.shape[1]
    records = np.zeros((rows, 1 + width), dtype=np.int64)

    def take(size: int) -> NDArray[np.uint64]:
        return np.empty(size, dtype=np.uint64)

    def add(held: list[NDArray[np.uint64]]) -> None:
        parts = deal_out(held, plan, {column: span}, {column: vectors}, take)
        parts[column].add(records)

    held: list[NDArray[np.uint64]] = []
    for block in blocks:
        if held and sum(map(len, held)) + len(block) > 2 * most:
            add(held)
            held = []
        held.append(block)
    add(held)
    out = np.empty((rows, width), dtype=np.float32)
    kernels.finish(records, vectors.mean, vectors.scale, out)
    return out


class BufferPool:
    """Keeps buffers for reuse."""

    def __init__(self) -> None:
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


def bucket_bits(rows: int) -> int:
    """Return log2 of the rows of a bucket."""
    return max((-(-rows // _MOST_BUCKETS) - 1).bit_length(), _BUCKET_BITS)


def map_pairs(path: Path) -> NDArray[np.uint64]:
    """Map a file of pairs, uint64[2 * n]."""
    if not path.stat().st_size:
        return np.empty(0, dtype=np.uint64)
    return np.memmap(path, dtype="<u8", mode="c")


def _padded(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Pad vectors with zeros to a multiple of 16 values."""
    missing = -values.shape[1] % LANES
    return np.pad(values, ((0, 0), (0, missing))) if missing else values


def _cut(
    blocks: Sequence[NDArray[np.uint64]], share: int, shares: int
) -> Iterator[NDArray[np.uint64]]:
    """Yield a share of the pairs, a cache at a time."""
    for pairs in blocks:
        for first in range(2 * _BLOCK * share, len(pairs), 2 * _BLOCK * shares):
            yield np.asarray(pairs[first : first + 2 * _BLOCK])

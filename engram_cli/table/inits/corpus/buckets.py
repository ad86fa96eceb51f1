"""The rows of a pass: pairs parted by the rows they fall on, and summed when asked for.

In: pairs of an order, all at once or some at a time, and a range of a column's rows. Out: those
rows in float32. A bucket is so few rows that their sums stay in a cache, so the pairs of a row need
no sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan
from engram_cli.table.inits.corpus import kernels

_SUM_BYTES = 2**16  # of a bucket's sums in int32, where a column is not too large for it
_MOST_BUCKETS = 2**14  # more places than this cost more to write to than the larger sums do
_INT32_COUNTS = 2**16  # counts x 2**15 stay in an int32
_BLOCK = 2**19  # pairs read at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnVectors:
    """The vectors int16[V, w] of a column, their scale, and their mean float64[w] to take away."""

    values: NDArray[np.int16]
    scale: float
    mean: NDArray[np.float64]


class ColumnPart:
    """The rows begin..end-1 of a column, from the pairs [2 * n] of `blocks` that fall on them."""

    def __init__(
        self,
        blocks: Sequence[NDArray[np.uint64]],
        plan: LayerPlan,
        column: int,
        span: tuple[int, int],
        vectors: ColumnVectors,
    ) -> None:
        """Reads the blocks twice, in order: once to count, once to place."""
        self.begin, self.end = span
        self._vectors = vectors
        self.shift = bucket_bits(self.end - self.begin, vectors.values.shape[1])
        hashed = int(plan.moduli[column]), int(plan.salts[column]), bool(plan.fast[column])
        sizes = np.zeros((self.end - self.begin - 1 >> self.shift) + 1, dtype=np.int64)
        for block in _cut(blocks):
            kernels.bucket_sizes(block, *hashed, self.begin, self.end, self.shift, sizes)
        self._ends = np.cumsum(sizes)
        self._entries = np.empty(int(sizes.sum()), dtype=np.uint64)
        places = self._ends - sizes
        for block in _cut(blocks):
            kernels.scatter(block, *hashed, self.begin, self.end, self.shift, places, self._entries)

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` (counted in the column) into `out` float32[n, w]."""
        height, width = 1 << self.shift, out.shape[1]
        sums: dict[type, NDArray[np.signedinteger]] = {}
        hits = np.empty(height, dtype=np.int64)
        rows = np.empty((height, width), dtype=np.float32)
        at, last = first - self.begin, first - self.begin + len(out)
        while at < last:
            bucket = at >> self.shift
            inside = at - (bucket << self.shift)
            count = min(height - inside, last - at)
            entries = self._bucket(bucket)
            kind = np.int32 if kernels.total(entries) <= _INT32_COUNTS else np.int64
            total = sums.setdefault(kind, np.empty((height, width), dtype=kind))
            total[:] = 0
            hits[:] = 0
            own = self._vectors
            kernels.add_entries(entries, own.values, total, hits)
            target = out[at - (first - self.begin) :][:count]
            whole = count == height
            kernels.finish(total, hits, own.mean, own.scale, target if whole else rows)
            if not whole:
                target[:] = rows[inside : inside + count]
            at += count

    def add(self, sums: NDArray[np.int64], hits: NDArray[np.int64]) -> None:
        """Add all to `sums` int64[end - begin, w], counts to `hits` int64[end - begin]."""
        for bucket in range(len(self._ends)):
            own = slice(bucket << self.shift, bucket + 1 << self.shift)
            kernels.add_entries(self._bucket(bucket), self._vectors.values, sums[own], hits[own])

    def _bucket(self, index: int) -> NDArray[np.uint64]:
        begin = int(self._ends[index - 1]) if index else 0
        return self._entries[begin : int(self._ends[index])]


def summed_rows(
    blocks: Iterable[NDArray[np.uint64]],
    plan: LayerPlan,
    column: int,
    span: tuple[int, int],
    vectors: ColumnVectors,
    *,
    most: int,
) -> NDArray[np.float32]:
    """float32[n, w]: the rows of `span` of a column, whatever the number of pairs [2 * n].

    The sums of all rows are kept, 8 bytes a value, and pairs added to them about `most` at a time.
    """
    shape = span[1] - span[0], vectors.values.shape[1]
    sums, hits = np.zeros(shape, dtype=np.int64), np.zeros(shape[0], dtype=np.int64)

    def add(held: list[NDArray[np.uint64]]) -> None:
        ColumnPart(held, plan, column, span, vectors).add(sums, hits)

    held: list[NDArray[np.uint64]] = []
    for block in blocks:
        if held and sum(map(len, held)) + len(block) > 2 * most:
            add(held)
            held = []
        held.append(block)
    add(held)
    out = np.empty(shape, dtype=np.float32)
    kernels.finish(sums, hits, vectors.mean, vectors.scale, out)
    return out


def bucket_bits(rows: int, width: int) -> int:
    """log2 of the rows a bucket: sums in the cache, and not too many buckets."""
    cached = max((_SUM_BYTES // (4 * width)).bit_length() - 1, 0)
    least = max((-(-rows // _MOST_BUCKETS) - 1).bit_length(), 0)
    return min(max(cached, least), kernels.ROW_BITS)


def map_pairs(path: Path) -> NDArray[np.uint64]:
    """The pairs of a tally [2 * n], mapped, not read."""
    if not path.stat().st_size:
        return np.empty(0, dtype=np.uint64)
    return np.memmap(path, dtype="<u8", mode="c")


def _cut(blocks: Sequence[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
    for pairs in blocks:
        for first in range(0, len(pairs), 2 * _BLOCK):
            yield np.asarray(pairs[first : first + 2 * _BLOCK])

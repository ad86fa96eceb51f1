"""Buffers n-grams before they are counted: adds up occurrences by n-gram, then counts the rows.

A buffer is a table of the latest n-grams with their occurrences, and a list of n-grams evicted from
it. A full list is counted, each column by any free thread. This pays because text repeats itself:
of the n-grams of a corpus of code and documentation, 12 to 45 % differ from what a table of 65,536
n-grams remembers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, Window
from engram_cli.stats.counting import hit_kernels as kernels

# A column of so many rows, 4 MB, is counted in the order of the list. A larger one is counted part
# by part: 2.5 ns an n-gram instead of 4.4 where it has 64 MB, and the list 3.3 M n-grams.
NEAR_ROWS = 2**20
# Parts have at least 2**15 rows, 128 KB of counters, and are at most 256 where this allows it.
LEAST_PART_BITS, WANTED_PARTS_BITS = 15, 8
MOST_PARTS = 2**10  # beyond, parts are too small to be worth it
# Lengths of a list, and the bytes that all of them may take.
LEAST_ITEMS, MOST_ITEMS = 2**19, 2**22
MOST_BYTES = 3 * 2**25  # half as many bytes count 5 % slower at V4.1, these 1 %
ITEM_BYTES = 10  # mix and occurrences
SLOT_BYTES = 8 << kernels.SLOT_BITS

Job: TypeAlias = Callable[[NDArray[np.uint32]], None]  # takes a thread's scratch memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Neighbouring columns of one order of a layer, and the counters of the layer.

    `order`: its index in the layout.
    """

    plan: LayerPlan
    order: int
    columns: slice
    hits: NDArray[np.uint32]

    @property
    def indices(self) -> range:
        """The columns one by one."""
        return range(self.columns.start, self.columns.stop)


class NgramBuffer:
    """Holds the n-grams of one order of a layer that are not counted yet."""

    def __init__(self, columns: Columns, items: int) -> None:
        """`items`: the most n-grams of the list."""
        plan = columns.plan
        self.columns = columns
        self._multipliers = plan.multipliers[columns.order, : plan.orders[columns.order]].copy()
        self._slots = np.zeros(1 << kernels.SLOT_BITS, dtype=np.uint64)
        self._mixes = np.empty(items + 1, dtype=np.uint64)
        self._times = np.empty(items + 1, dtype=np.uint16)
        self._used = 0

    @property
    def room(self) -> int:
        """How many tokens may be pushed before the `jobs` must be run."""
        return len(self._mixes) - 1 - self._used

    def push(self, window: Window, rows: NDArray[np.uint32]) -> None:
        """Take the n-grams of T positions, at most `room`; `rows` uint32[T] gets the rows of the
        first column, unless it is empty."""
        assert len(window) <= self.room
        plan, first = self.columns.plan, self.columns.columns.start
        self._used = kernels.combine(
            window.tokens,
            window.seen,
            plan.filler,
            self._multipliers,
            plan.moduli[first],
            plan.salts[first],
            plan.fast[first],
            self._slots,
            self._used,
            self._mixes,
            self._times,
            rows,
        )

    def jobs(self) -> Sequence[Job]:
        """Empty the list; run the jobs, in any order, before the next push."""
        mixes, times = self._mixes[: self._used], self._times[: self._used]
        self._used = 0
        kernels.unscramble(mixes)
        if not len(mixes):
            return []
        return [partial(self._count, column, mixes, times) for column in self.columns.indices]

    def last_jobs(self) -> Sequence[Job]:
        """Empty the table and the list."""
        assert len(self._slots) <= self.room
        self._used = kernels.empty_slots(self._slots, self._used, self._mixes, self._times)
        return self.jobs()

    def _count(
        self,
        column: int,
        mixes: NDArray[np.uint64],
        times: NDArray[np.uint16],
        scratch: NDArray[np.uint32],
    ) -> None:
        plan = self.columns.plan
        modulus, offset = int(plan.moduli[column]), int(plan.offsets[column])
        own = self.columns.hits[offset : offset + modulus]
        hashed = (mixes, times, modulus, plan.salts[column], plan.fast[column])
        parts = parts_of(modulus)
        if parts:
            items = scratch[: len(scratch) // parts * parts].reshape(parts, -1)
            ends = np.empty(parts, dtype=np.int64)
            kernels.count_far(*hashed, part_bits(modulus), items, ends, own)
        else:
            kernels.count_near(*hashed, own)


class DirectCounter:
    """Counts every occurrence at once, where n-grams have no mix that decides all their rows: the
    fold "powers". Slower than `NgramBuffer`."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._plan = columns.plan.of_order(columns.order)

    @property
    def room(self) -> int:
        """Unlimited: nothing is buffered."""
        return sys.maxsize

    def push(self, window: Window, rows: NDArray[np.uint32]) -> None:
        """Count the n-grams of T positions; `rows` as in `NgramBuffer.push`."""
        plan = self._plan
        found = np.empty((len(plan.moduli), len(window)), dtype=np.uint32)
        plan.columns(window.tokens, window.seen, found)
        rows[:] = found[0][: len(rows)]
        for own, begin, modulus in zip(found, plan.offsets, plan.moduli, strict=True):
            kernels.count_rows(own, self.columns.hits[begin : begin + modulus])

    def jobs(self) -> Sequence[Job]:
        """Return no jobs."""
        return []

    last_jobs = jobs


def make_buffer(columns: Columns, items: int) -> NgramBuffer | DirectCounter:
    """Return the buffer of some columns; `items`: the most n-grams of its list."""
    return DirectCounter(columns) if len(columns.plan.weights) else NgramBuffer(columns, items)


def part_bits(rows: int) -> int:
    """Return of how many bits a row in a part of a column is."""
    wanted = (rows - 1 >> WANTED_PARTS_BITS).bit_length()
    return min(max(wanted, LEAST_PART_BITS), kernels.ROW_BITS)


def parts_of(rows: int) -> int:
    """Return into how many parts a column is divided for counting; 0: it is not divided."""
    parts = -(-rows >> part_bits(rows))
    return parts if rows > NEAR_ROWS and parts <= MOST_PARTS else 0


def scratch_items(rows: int, items: int) -> int:
    """Return how many uint32 it takes to count `items` n-grams in a column of `rows`.

    An eighth more than `items`, for parts are not filled evenly, and two tiles for each part.
    """
    parts = parts_of(rows)
    return items + items // 8 + 2 * kernels.TILE * parts if parts else 0

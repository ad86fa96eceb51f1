"""Buffers n-grams before they are counted: adds up occurrences by n-gram, then counts the rows.

A buffer is a table of the latest n-grams with their occurrences, and a list of n-grams evicted from
it. A full list is sampled and counted, each column by any free thread. This pays because text
repeats itself: of the n-grams of a corpus of code and documentation, 11 to 38 % differ from what a
table of 131,072 n-grams remembers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, Window
from engram_cli.hashing.layout import HashLayout
from engram_cli.registry import LazyModule
from engram_cli.stats.counting import KEY_BITS, LOW_BITS, SLOT_BITS, TILE
from engram_cli.stats.sampling.distinct import Sampler

kernels = LazyModule("engram_cli.stats.counting.hit_kernels")
key_kernels = LazyModule("engram_cli.stats.counting.key_kernels")

# A column of so many rows, 4 MB, is counted in the order of the list. A larger one is counted part
# by part: 2.5 ns an n-gram instead of 4.4 where it has 64 MB, and the list 3.3 M n-grams.
NEAR_ROWS = 2**20
# Parts have at least 2**15 rows, 128 KB of counters, and are at most 256 where this allows it.
LEAST_PART_BITS, WANTED_PARTS_BITS = 15, 8
# Lengths of a list, and the bytes that all of them may take.
LEAST_ITEMS, MOST_ITEMS = 2**19, 2**22
MOST_BYTES = 3 * 2**24  # twice as many bytes count 1 % faster at V4.1, without page faults
_ITEM_BYTES, _MIX_BYTES = 11, 8  # word, place and occurrences; a mix for each layer but the last
_SLOT_BYTES = 8 << SLOT_BITS

Job: TypeAlias = Callable[[NDArray[np.uint32]], None]  # takes a thread's scratch memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """The columns of one order of a layer, and the counters of the layer.

    `order`: its index in the layout.
    """

    plan: LayerPlan
    order: int
    hits: NDArray[np.uint32]

    @property
    def indices(self) -> range:
        """The columns one by one."""
        return range(self.order * self.plan.heads, (self.order + 1) * self.plan.heads)

    def first_head(self) -> LayerPlan:
        """Return the plan of the first column alone."""
        plan = self.plan.of_order(self.order)
        first = ("weights", "moduli", "salts", "fast", "offsets")
        return replace(plan, heads=1, **{name: getattr(plan, name)[:1] for name in first})


class NgramBuffer:
    """Holds the n-grams of one order that are not counted yet, for one layer or for all."""

    def __init__(
        self, layers: Sequence[Columns], bits: int, items: int, sampler: Sampler | None = None
    ) -> None:
        """`layers`: the columns of the order in each; several, or a sampler, need keys.

        `bits`: see `key_bits`; `items`: the most n-grams of the list; `sampler`: gets them too.
        """
        assert bits or (len(layers) == 1 and sampler is None)
        self.layers = tuple(layers)
        self._bits = bits
        self._sampler = sampler
        self._multipliers = [
            each.plan.multipliers[each.order, : each.plan.orders[each.order]].copy()
            for each in layers
        ]
        self._slots = np.zeros(1 << SLOT_BITS, dtype=np.uint64)
        self._words = np.empty(items + 1, dtype=np.uint64)
        self._places = np.empty(items + 1, dtype=np.uint16)
        self._times = np.empty(items + 1, dtype=np.uint8)
        # The mixes of the last layer take the place of the words.
        more = (np.empty(items + 1, dtype=np.uint64) for _ in layers[1:])
        self._mixes = (*more, self._words)
        self._used = 0

    @property
    def room(self) -> int:
        """How many tokens may be pushed before the `jobs` must be run."""
        return len(self._words) - 1 - self._used

    def push(self, window: Window) -> None:
        """Take the n-grams of T positions, at most `room`."""
        assert len(window) <= self.room
        self._used = kernels.combine(
            window.tokens,
            window.seen,
            self.layers[0].plan.filler,
            self._multipliers[0],
            self._bits,
            self._slots,
            self._used,
            self._words,
            self._places,
        )

    def jobs(self) -> Sequence[Job]:
        """Empty the list; run the jobs, in any order, before the next push."""
        words, places = self._words[: self._used], self._places[: self._used]
        times = self._times[: self._used]
        self._used = 0
        if not len(words):
            return []
        if self._sampler is not None:
            self._sampler.push_keys(words, places, self._bits)
        jobs: list[Job] = []
        for layer, multipliers, room in zip(
            self.layers, self._multipliers, self._mixes, strict=True
        ):
            mixes = room[: len(words)]
            key_kernels.key_mixes(words, places, multipliers, self._bits, mixes, times)
            jobs += [partial(_count, layer, each, mixes, times) for each in layer.indices]
        return jobs

    def last_jobs(self) -> Sequence[Job]:
        """Empty the table and the list."""
        assert len(self._slots) <= self.room
        self._used = kernels.empty_slots(self._slots, self._used, self._words, self._places)
        return self.jobs()


def _count(
    layer: Columns,
    column: int,
    mixes: NDArray[np.uint64],
    times: NDArray[np.uint8],
    scratch: NDArray[np.uint32],
) -> None:
    """Add n-grams to the counters of a column."""
    plan = layer.plan
    modulus, offset = int(plan.moduli[column]), int(plan.offsets[column])
    own = layer.hits[offset : offset + modulus]
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
        self.layers = (columns,)
        self._plan = columns.plan.of_order(columns.order)

    @property
    def room(self) -> int:
        """Unlimited: nothing is buffered."""
        return sys.maxsize

    def push(self, window: Window) -> None:
        """Count the n-grams of T positions."""
        plan, hits = self._plan, self.layers[0].hits
        found = np.empty((len(plan.moduli), len(window)), dtype=np.uint32)
        plan.columns(window.tokens, window.seen, found)
        for own, begin, modulus in zip(found, plan.offsets, plan.moduli, strict=True):
            kernels.count_rows(own, hits[begin : begin + modulus])

    def jobs(self) -> Sequence[Job]:
        """Return no jobs."""
        return []

    last_jobs = jobs


def key_bits(layout: HashLayout, order: int) -> int:
    """Return the bits of a token in the key of an n-gram; 0 where such a key would be too long."""
    bits = max((layout.compressed_size - 1).bit_length(), LOW_BITS)
    return bits if layout.fold != "powers" and order * bits <= KEY_BITS else 0


def make_buffers(
    layers: Sequence[Columns], bits: int, items: int, sampler: Sampler
) -> list[NgramBuffer | DirectCounter]:
    """Return what counts one order in all layers: a buffer, or one for each layer without keys.

    `bits`, `items`: as `NgramBuffer` takes them; only a buffer with keys fills the sampler.
    """
    if bits:
        return [NgramBuffer(layers, bits, items, sampler)]
    return [
        DirectCounter(each) if len(each.plan.weights) else NgramBuffer([each], 0, items)
        for each in layers
    ]


def list_bytes(layout: HashLayout, items: int) -> int:
    """Return the bytes of the buffers of all orders, with lists of so many n-grams."""
    total, layers = 0, len(layout.layers)
    for order in layout.orders:
        shared = key_bits(layout, order) > 0
        lists = 1 if shared else layers
        mixes = _MIX_BYTES * (layers - 1) if shared else 0
        total += lists * _SLOT_BYTES + items * (lists * _ITEM_BYTES + mixes)
    return total


def part_bits(rows: int) -> int:
    """Return of how many bits a row in a part of a column is."""
    wanted = (rows - 1 >> WANTED_PARTS_BITS).bit_length()
    return max(wanted, LEAST_PART_BITS)


def parts_of(rows: int) -> int:
    """Return into how many parts a column is divided for counting; 0: it is not divided."""
    return -(-rows >> part_bits(rows)) if rows > NEAR_ROWS else 0


def scratch_items(rows: int, items: int) -> int:
    """Return how many uint32 it takes to count `items` n-grams in a column of `rows`.

    An eighth more than `items`, for parts are not filled evenly, and two tiles for each part.
    """
    parts = parts_of(rows)
    return items + items // 8 + 2 * TILE * parts if parts else 0

"""Buffers n-grams before they are counted: adds up occurrences by n-gram, then counts the rows.

Each thread has a table of the latest n-grams with their occurrences. N-grams evicted from it fill
a list. Full lists of all threads are counted together, each column by any free thread. This pays
because text repeats itself: of the n-grams of a corpus of code and documentation, 11 to 38 % differ
from what a table of 131,072 n-grams remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, Window
from engram_cli.hashing.layout import HashLayout
from engram_cli.registry import LazyModule
from engram_cli.stats.counting import KEY_BITS, LOW_BITS, SLOT_BITS, TILE
from engram_cli.stats.counting.jobs import Job, JobQueue
from engram_cli.stats.sampling.distinct import Chosen, Sampler

kernels = LazyModule("engram_cli.stats.counting.hit_kernels")
key_kernels = LazyModule("engram_cli.stats.counting.key_kernels")

# A column of so many rows, 4 MB, is counted in the order of the lists. A larger one is counted part
# by part: 2.5 ns an n-gram instead of 4.4 where it has 64 MB, and the lists 3.3 M n-grams.
NEAR_ROWS = 2**20
# Parts have at least 2**15 rows, 128 KB of counters, and are at most 256 where this allows it.
LEAST_PART_BITS, WANTED_PARTS_BITS = 15, 8
LIST_ITEMS = 2**17  # n-grams of a list, 1.4 MB: a thread hands it over after about as many tokens
# N-grams that are counted together, and the bytes that the lists of all orders may take for each
# thread. At V4.1 half as many bytes count a third more slowly, and twice as many no faster.
LEAST_ITEMS, MOST_ITEMS = 2**19, 2**22
THREAD_BYTES = 3 * 2**24
_MOST_CHOSEN, _CHOSEN_BYTES = 2**14, 18  # n-grams of a list that are sampled later
_ITEM_BYTES, _MIX_BYTES = 11, 8  # word, place and occurrences; a mix for each layer but the last
_SLOT_BYTES = 8 << SLOT_BITS


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


class NgramList:
    """Up to `items` n-grams of one order, then their mixes in each layer and their occurrences."""

    def __init__(self, items: int, layers: int) -> None:
        self.words = np.empty(items, dtype=np.uint64)
        self.places = np.empty(items, dtype=np.uint16)
        self.times = np.empty(items, dtype=np.uint8)
        # The mixes of the last layer take the place of the words.
        self.mixes = (*(np.empty(items, dtype=np.uint64) for _ in range(layers - 1)), self.words)
        self.used = np.zeros(1, dtype=np.int64)
        self.chosen: Chosen | None = None  # n-grams that are still to be sampled

    def __len__(self) -> int:
        return int(self.used[0])


class NgramCounter:
    """Counts the lists of n-grams of one order, for one layer or for all.

    `together` lists are counted at a time while as many others are filled.
    """

    def __init__(
        self,
        layers: Sequence[Columns],
        bits: int,
        together: int,
        sampler: Sampler | None = None,
        items: int = LIST_ITEMS,
    ) -> None:
        """`layers`: the columns of the order in each; several, or a sampler, need keys.

        `bits`: see `key_bits`; `items`: n-grams of a list; `sampler`: gets them too.
        """
        assert bits or (len(layers) == 1 and sampler is None)
        self.layers, self.bits = tuple(layers), bits
        self.multipliers = [
            each.plan.multipliers[each.order, : each.plan.orders[each.order]].copy()
            for each in layers
        ]
        self._together, self._items, self._sampler = together, items, sampler
        self._spare = 2 * together  # lists that may still be made, besides one for each table
        self._free: list[NgramList] = []
        self._full: list[NgramList] = []
        self._counted: list[NgramList] = []
        self._running = 0

    def table(self) -> NgramTable:
        """Return the table of a thread."""
        self._spare += 1
        return NgramTable(self)

    def prepare(self, filled: NgramList, scratch: NDArray[np.uint32]) -> None:
        """Choose the n-grams of a list that may be sampled, and find the mixes of all."""
        count = len(filled)
        words, places = filled.words[:count], filled.places[:count]
        if self._sampler is not None:
            chosen = self._sampler.choose_keys(words, places, self.bits, scratch)
            if len(chosen[0]) > _MOST_CHOSEN:  # the corpus has only begun
                self._sampler.push_keys(chosen, self.bits)
            else:
                filled.chosen = chosen
        for multipliers, mixes in zip(self.multipliers, filled.mixes, strict=True):
            own = mixes[:count]
            key_kernels.key_mixes(words, places, multipliers, self.bits, own, filled.times[:count])

    def release(self) -> None:
        """Free the memory of empty lists; tables made before are not used any more."""
        self._spare, self._free = 2 * self._together, []

    # The methods below are called under the lock of a `JobQueue`.

    def take(self) -> NgramList | None:
        """Return an empty list; None while all others wait to be counted."""
        if self._free:
            return self._free.pop()
        if not self._spare:
            return None
        self._spare -= 1
        return NgramList(self._items, len(self.layers))

    def add(self, filled: NgramList) -> Sequence[Job]:
        """Take a prepared list; return what can be counted now."""
        self._full.append(filled)
        return self.jobs(self._together)

    def jobs(self, least: int = 1) -> Sequence[Job]:
        """Return the jobs that count at least so many lists, unless others are being counted."""
        if self._running or len(self._full) < least:
            return ()
        self._counted = self._full[: self._together]
        del self._full[: self._together]
        found: list[Job] = [
            _CountJob(self, each, column) for each in self.layers for column in each.indices
        ]
        if self._sampler is not None:
            found.append(_SampleJob(self))
        self._running = len(found)
        return found

    def one_done(self) -> Sequence[Job]:
        """Note that one job is done. After the last, its lists are free, and others are next."""
        self._running -= 1
        if self._running:
            return ()
        for each in self._counted:
            each.used[0], each.chosen = 0, None
        self._free += self._counted
        self._counted = []
        return self.jobs(self._together)

    def sample(self) -> None:
        """Sample the n-grams of the lists at hand that were chosen."""
        for each in self._counted:
            if each.chosen is not None and self._sampler is not None:
                self._sampler.push_keys(each.chosen, self.bits)

    def count(self, layer: Columns, column: int, scratch: NDArray[np.uint32]) -> None:
        """Add the n-grams of the lists at hand to the counters of a column."""
        plan = layer.plan
        modulus, offset = int(plan.moduli[column]), int(plan.offsets[column])
        own = layer.hits[offset : offset + modulus]
        hashed = modulus, plan.salts[column], plan.fast[column]
        index, parts, bits = self.layers.index(layer), parts_of(modulus), part_bits(modulus)
        lists = [
            (each.mixes[index][: len(each)], each.times[: len(each)]) for each in self._counted
        ]
        if not parts:
            kernels.bring_near(own)
            for mixes, times in lists:
                kernels.count_near(mixes, times, *hashed, own)
            return
        items = scratch[: len(scratch) // parts * parts].reshape(parts, -1)
        ends = np.arange(parts, dtype=np.int64) * items.shape[1]
        for mixes, times in lists:
            kernels.deal_out(mixes, times, *hashed, bits, items, ends, own)
        kernels.count_parts(bits, items, ends, own)


@dataclass(frozen=True, slots=True, eq=False)
class _CountJob(Job):
    """Counts the lists at hand of a counter in one column."""

    counter: NgramCounter
    layer: Columns
    column: int

    def run(self, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        """Count them."""
        self.counter.count(self.layer, self.column, scratch)

    def done(self) -> Sequence[Job]:
        """Return what can be counted next."""
        return self.counter.one_done()


@dataclass(frozen=True, slots=True, eq=False)
class _SampleJob(Job):
    """Samples the lists at hand of a counter, so that no thread waits for another to do so."""

    counter: NgramCounter

    def run(self, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        """Sample them."""
        self.counter.sample()

    def done(self) -> Sequence[Job]:
        """Return what can be counted next."""
        return self.counter.one_done()


class NgramTable:
    """The n-grams of one order that a thread has met last, and the list that it fills."""

    def __init__(self, counter: NgramCounter) -> None:
        self._counter = counter
        self._slots = np.zeros(1 << SLOT_BITS, dtype=np.uint64)
        self._list: NgramList | None = None
        self.used = False  # since it was emptied

    def push(self, window: Window, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        """Take the n-grams of T positions. May do jobs of others until there is an empty list."""
        counter, done, self.used = self._counter, 0, True
        while done < len(window):
            own = self._room(scratch, queue)
            done = kernels.combine(
                window.tokens,
                window.seen,
                done,
                counter.layers[0].plan.filler,
                counter.multipliers[0],
                counter.bits,
                self._slots,
                own.words,
                own.places,
                own.used,
            )
            if done < len(window):
                self._hand_over(scratch, queue)

    def empty(self, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        """Hand over all n-grams."""
        done, self.used = 0, False
        while done < len(self._slots):
            own = self._room(scratch, queue)
            done = kernels.empty_slots(self._slots, done, own.words, own.places, own.used)
            if len(own):
                self._hand_over(scratch, queue)

    def _room(self, scratch: NDArray[np.uint32], queue: JobQueue) -> NgramList:
        if self._list is None:
            self._list = queue.wait_for(self._counter.take, scratch)
        return self._list

    def _hand_over(self, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        filled, self._list = self._list, None
        assert filled is not None
        self._counter.prepare(filled, scratch)
        queue.add(lambda: self._counter.add(filled))


@dataclass(frozen=True, slots=True, eq=False)
class EmptyJob(Job):
    """Empties the table of a thread that does not use it meanwhile."""

    table: NgramTable

    def run(self, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        """Empty it."""
        self.table.empty(scratch, queue)


class DirectCounter:
    """Counts every occurrence at once, where n-grams have no mix that decides all their rows: the
    fold "powers". Slower than `NgramCounter`."""

    def __init__(self, columns: Columns) -> None:
        self.layers = (columns,)
        self._plan = columns.plan.of_order(columns.order)
        self._locks = [Lock() for _ in columns.indices]

    def push(self, window: Window) -> None:
        """Count the n-grams of T positions."""
        plan, hits = self._plan, self.layers[0].hits
        found = np.empty((len(plan.moduli), len(window)), dtype=np.uint32)
        plan.columns(window.tokens, window.seen, found)
        for lock, own, begin, modulus in zip(
            self._locks, found, plan.offsets, plan.moduli, strict=True
        ):
            with lock:
                kernels.count_rows(own, hits[begin : begin + modulus])


def key_bits(layout: HashLayout, order: int) -> int:
    """Return the bits of a token in the key of an n-gram; 0 where such a key would be too long."""
    bits = max((layout.compressed_size - 1).bit_length(), LOW_BITS)
    return bits if layout.fold != "powers" and order * bits <= KEY_BITS else 0


def make_counters(
    layers: Sequence[Columns],
    bits: int,
    together: int,
    sampler: Sampler,
    items: int = LIST_ITEMS,
) -> list[NgramCounter | DirectCounter]:
    """Return what counts one order in all layers: one counter, or one for each layer without keys.

    `bits`, `together`, `items`: as `NgramCounter` takes them; only one with keys fills the sampler.
    """
    if bits:
        return [NgramCounter(layers, bits, together, sampler, items)]
    if layers[0].plan.weights.size:
        return [DirectCounter(each) for each in layers]
    return [NgramCounter([each], 0, together, None, items) for each in layers]


def list_bytes(layout: HashLayout) -> int:
    """Return the bytes of one list of each order; of each layer, where n-grams have no keys."""
    total, layers = 0, len(layout.layers)
    for order in layout.orders:
        shared = key_bits(layout, order) > 0
        mixes = _MIX_BYTES * (layers - 1) if shared else 0
        total += LIST_ITEMS * ((1 if shared else layers) * _ITEM_BYTES + mixes)
        total += _MOST_CHOSEN * _CHOSEN_BYTES if shared else 0
    return total


def table_bytes(layout: HashLayout) -> int:
    """Return the bytes of the tables of a thread."""
    shared = [key_bits(layout, order) > 0 for order in layout.orders]
    return _SLOT_BYTES * sum(1 if each else len(layout.layers) for each in shared)


def lists_together(layout: HashLayout, threads: int) -> int:
    """Return how many lists of an order are counted together.

    One n-gram for eight rows of a column is worth counting, and a list for each thread, if the
    lists do not take too much.
    """
    largest = max(modulus for entry in layout.layers for modulus in entry.moduli)
    wanted = max(min(largest // 8, MOST_ITEMS), LEAST_ITEMS) // LIST_ITEMS
    room = THREAD_BYTES * max(threads, 2) // (2 * list_bytes(layout))
    return max(min(max(wanted, threads), MOST_ITEMS // LIST_ITEMS, room), 1)


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

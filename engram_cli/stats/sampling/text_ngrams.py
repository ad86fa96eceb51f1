"""Samples or counts the n-grams of a text: which there are, and how often they occur.

Raw ids (`statistics.compare`) and each source of a corpus (`statistics.sources`) are such texts. Of
each order a text has a sample of its n-grams (`distinct`), and with `--exact` all of them; of a
source also a bitmap of all its n-grams. One sample of positions (`occurrences`) serves all orders.
The corpus itself has the same, counted by tasks of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import bytes_text
from engram_cli.registry import LazyModule
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.distinct import EVERYTHING, NgramSample, hash_ngrams
from engram_cli.stats.sampling.occurrences import OccurrenceSample, read_occurrences
from engram_cli.stats.sampling.samples import merged, samples_of, samples_state
from engram_cli.stats.state import State, check, nested, numbered, part_of, take
from engram_cli.stats.totals import Counts

kernels = LazyModule("engram_cli.stats.counting.kernels")

EXACT = "exact"  # names the arrays of all n-grams in the partials of texts
EXACT_OF = f"{EXACT}-"  # and with an order behind it the partial of all n-grams of the corpus
_FIRST_SLOTS = 2**20
_BLOCK = 2**17  # n-grams whose tokens are kept together
_FILL = 0.7  # of the slots of a table at most
_STEP = 2**17
_SLOT = 16  # bytes: hash and count side by side

# 1 MB: 6 million distinct n-grams set half of it, which doubles the error of a share.
BITS = 2**23
_SPARSE = BITS // 32  # bits set below which their positions take less room


class Budget:
    """Bytes that several tables may take together, from several threads."""

    def __init__(self, size: int | None) -> None:
        """Set the `size` in bytes, None if the free memory is unknown."""
        self.size = size
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, amount: int, what: str) -> None:
        """Take `amount` more bytes, or give some back. Raises InputError when it is too much."""
        with self._lock:
            if amount > 0 and self.size is not None and self._taken + amount > self.size:
                raise InputError(
                    f"{what} need {bytes_text(self._taken + amount)} or more, "
                    f"{bytes_text(self.size)} of memory may be used",
                    "leave out --exact: the sample gives the same figures and their errors",
                )
            self._taken += amount


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllNgrams:
    """All n-grams of an order, as a sample that misses none.

    N-grams are told apart by the 64-bit hash of `distinct`: 2-grams never collide, of 100
    million longer ones two do with a chance of 1 in 3,700.
    """

    sample: NgramSample

    @property
    def memory(self) -> int:
        """The bytes of all of them: tokens, hashes and counts."""
        return len(self.sample.counts) * (4 * self.sample.order + 16)

    def state(self) -> State:
        """Return tokens and counts; the hashes follow from the tokens."""
        return {"tokens": self.sample.tokens.reshape(-1), "counts": self.sample.counts}

    def merge(self, other: AllNgrams) -> AllNgrams:
        """Return the n-grams of both parts."""
        size = max(len(self.sample.hashes) + len(other.sample.hashes), 1)
        both = replace(self.sample, size=size).merge(replace(other.sample, size=size))
        return AllNgrams(sample=replace(both, size=max(len(both.hashes), 1)))

    def result(self, counts: Counts) -> None:
        """Return None: it makes the other figures exact."""


def _all(
    hashes: NDArray[np.uint64], counts: NDArray[np.uint64], tokens: NDArray[np.int32]
) -> AllNgrams:
    order, size = tokens.shape[1], max(len(hashes), 1)
    return AllNgrams(
        sample=NgramSample(
            order=order,
            size=size,
            threshold=EVERYTHING,
            hashes=hashes,
            counts=counts,
            tokens=tokens,
        )
    )


def read_all(layout: HashLayout, order: int, state: State) -> AllNgrams:
    """Return all n-grams of an order in a `state`. Raises ArtifactError."""
    counts = take(state, "counts", np.uint64, (-1,))
    tokens = take(state, "tokens", np.int32, (len(counts) * order,)).reshape(-1, order)
    inside = not len(tokens) or 0 <= tokens.min() <= tokens.max() < layout.compressed_size
    check(bool(inside), "tokens")
    hashes = hash_ngrams(tokens)
    check(bool(np.all(hashes[1:] > hashes[:-1])), "tokens")
    return _all(hashes, counts, tokens)


class ExactNgrams(Collector):
    """Counts all n-grams of one order, in a hash table that doubles.

    For corpora whose n-grams fit in memory; the row counters and the sample do without.
    """

    def __init__(
        self, layout: HashLayout, order: int, budget: Budget, entries: int | None = None
    ) -> None:
        """Make a table, with room for `entries` at first: few if there are many tables.

        Raises InputError when not even an empty table fits.
        """
        self.name = f"{EXACT_OF}{order}"
        self.order = order
        self._heads = layout.heads
        self._filler = layout.filler_id
        self._budget = budget
        self._first = _FIRST_SLOTS if entries is None else entries
        self._block = _BLOCK if entries is None else min(_BLOCK, entries)
        self._counted: AllNgrams | None = None
        self._state = np.zeros(2, dtype=np.int64)  # entries, and n-grams in the last block
        self._blocks: list[NDArray[np.int32]] = []
        self._slots = self._new_slots(self._first)
        self._new_block()

    @property
    def memory(self) -> int:
        """The bytes it begins with; it takes more from the budget."""
        return self._first * _SLOT + self._block_bytes

    def push(self, chunk: TokenChunk) -> None:
        """Count the n-grams at every position. Raises InputError when memory does not suffice."""
        window, done = chunk.window, 0
        while done < len(window):
            limit = int(_FILL * (len(self._slots) // 2))
            done = kernels.count_ngrams(
                window.tokens,
                window.seen,
                self._filler,
                self.order,
                done,
                limit,
                self._slots,
                self._blocks[-1],
                self._state,
            )
            if self._state[1] == len(self._blocks[-1]):
                self._new_block()
            if self._state[0] >= limit:
                self._grow()

    def partial(self) -> AllNgrams:
        """Return all n-grams by ascending hash; the table is given up."""
        if self._counted is None:
            self._counted = self._drain()
        return self._counted

    def _drain(self) -> AllNgrams:
        used = int(self._state[0])
        tokens = np.concatenate(self._blocks)[:used]
        self._blocks.clear()
        hashes = np.empty(used, dtype=np.uint64)
        for begin in range(0, used, _STEP):
            hashes[begin : begin + _STEP] = hash_ngrams(tokens[begin : begin + _STEP])
        counts = np.empty(used, dtype=np.uint64)
        kernels.find_counts(hashes, self._slots, counts)
        self._slots = self._slots[:0]
        order = np.argsort(hashes)
        return _all(hashes[order], counts[order], tokens[order])

    def state(self) -> State:
        """Return the table, and the tokens block by block; no copies."""
        blocks = [*self._blocks[:-1], self._blocks[-1][: self._state[1]]]
        return {"slots": self._slots} | numbered([{"tokens": block} for block in blocks])

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError, InputError for too little memory."""
        slots = take(state, "slots", np.uint64, (-1,))
        entries, last = len(slots) // 2, len(state) - 2
        used = int(np.count_nonzero(slots[::2]))
        whole = entries >= self._first and 2 * (1 << (entries - 1).bit_length()) == len(slots)
        check(whole and used < int(_FILL * entries) and last == used // self._block, "slots")
        while len(self._slots) < len(slots):
            self._grow()
        self._slots.fill(0)
        kernels.move_slots(slots, self._slots)
        for index in range(last + 1):
            count = self._block if index < last else used % self._block
            tokens = take(part_of(state, index), "tokens", np.int32, (count, self.order))
            self._blocks[-1][:count] = tokens
            if index < last:
                self._new_block()
        self._state[:] = used, used % self._block

    @property
    def _block_bytes(self) -> int:
        """The bytes of a block's tokens, and of what the figures take for as many n-grams.

        They take the tokens once more, hash, count and index, and a byte for each head.
        """
        return self._block * (2 * 4 * self.order + 24 + self._heads)

    def _new_block(self) -> None:
        self._budget.take(self._block_bytes, self._what())
        self._blocks.append(np.zeros((self._block, self.order), dtype=np.int32))
        self._state[1] = 0

    def _new_slots(self, count: int) -> NDArray[np.uint64]:
        self._budget.take(count * _SLOT, self._what())
        return np.zeros(2 * count, dtype=np.uint64)

    def _grow(self) -> None:
        """Move to a table of twice the size; both exist for a while."""
        slots = self._new_slots(len(self._slots))
        kernels.move_slots(self._slots, slots)
        self._budget.take(-(len(self._slots) // 2) * _SLOT, self._what())
        self._slots = slots

    def _what(self) -> str:
        return f"all {self.order}-grams, {int(self._state[0]):,} so far,"


def exact_ngrams(
    layout: HashLayout, budget: Budget, entries: int | None = None
) -> tuple[ExactNgrams, ...]:
    """Return a table for each order, within a budget together. Raises InputError."""
    return tuple(ExactNgrams(layout, order, budget, entries) for order in layout.orders)


class Membership:
    """A bitmap of the n-grams that occur in a text.

    It says of an n-gram that it does not occur, or that it may: others set its bit with a chance of
    `load`, the share of bits set. So shares are corrected for it, and have an error that grows as
    the bitmap fills. Bitmaps of two parts merge by "or".
    Source: linear counting, Whang, Vander-Zanden and Taylor (1990); Bloom (1970) with one hash.
    """

    def __init__(self) -> None:
        self.bits = np.zeros(BITS // 8, dtype=np.uint8)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Set the bits of n-grams."""
        kernels.set_bits(hashes, self.bits)

    def may_hold(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return bool[T]: whether the bits of n-grams are set."""
        at = hashes & np.uint64(BITS - 1)
        bits = self.bits[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8)
        return np.asarray(bits & 1, dtype=np.bool_)

    @property
    def load(self) -> float:
        """The share of bits that are set."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64)) / BITS

    def merge(self, other: Membership) -> Membership:
        """Return that of both parts."""
        both = Membership()
        np.bitwise_or(self.bits, other.bits, out=both.bits)
        return both

    def state(self) -> State:
        """Return the positions of the bits set, in order, or all bits if that takes less room."""
        if int(np.bitwise_count(self.bits).sum(dtype=np.int64)) < _SPARSE:
            set_at = np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))
            return {"set": set_at.astype(np.uint32)}
        return {"bits": self.bits}


def read_membership(state: State) -> Membership:
    """Return the bitmap in a `state`. Raises ArtifactError."""
    found = Membership()
    if "bits" in state:
        found.bits = take(state, "bits", np.uint8, (BITS // 8,))
        return found
    places = take(state, "set", np.uint32, (-1,))
    check(bool(np.all(places[1:] > places[:-1])) and len(places) < _SPARSE, "set")
    check(not len(places) or int(places[-1]) < BITS, "set")
    found.add(places.astype(np.uint64))
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextNgrams:
    """What is known of the n-grams of a text, one entry an order, and a sample of its positions.

    `every`: all n-grams, () if only the samples are known; `seen`: () without bitmaps.
    """

    samples: tuple[NgramSample, ...]
    every: tuple[AllNgrams, ...]
    occurrences: OccurrenceSample
    seen: tuple[Membership, ...] = ()

    @property
    def best(self) -> tuple[NgramSample, ...]:
        """The n-grams that figures are computed from: all of them if they are known."""
        return tuple(each.sample for each in self.every) or self.samples

    def merge(self, other: TextNgrams) -> TextNgrams:
        """Return that of both parts. Raises MismatchError."""
        pairs = zip(self.every, other.every, strict=False)  # () where one part has none
        return TextNgrams(
            samples=merged(self.samples, other.samples),
            every=tuple(one.merge(two) for one, two in pairs),
            occurrences=self.occurrences.merge(other.occurrences),
            seen=tuple(one.merge(two) for one, two in zip(self.seen, other.seen, strict=True)),
        )

    def state(self) -> State:
        """Return all of it as named arrays."""
        return nested(
            samples=samples_state(self.samples),
            seen=numbered([seen.state() for seen in self.seen]),
            occurrences=self.occurrences.state(),
            **{EXACT: numbered([every.state() for every in self.every])},
        )


def read_text(layout: HashLayout, state: State, tokens: int, *, seen: bool) -> TextNgrams:
    """Return a text of at most `tokens` tokens in a `state`; `seen`: with bitmaps.

    Raises ArtifactError.
    """
    every, orders = part_of(state, EXACT), layout.orders
    bitmaps: Sequence[int] = range(len(orders) if seen else 0)
    return TextNgrams(
        samples=samples_of(
            part_of(state, "samples"), orders, range(layout.compressed_size), tokens
        ),
        every=tuple(
            read_all(layout, order, part_of(every, index))
            for index, order in enumerate(orders if every else ())
        ),
        occurrences=read_occurrences(layout, part_of(state, "occurrences")),
        seen=tuple(read_membership(part_of(state, f"seen/{index}")) for index in bitmaps),
    )

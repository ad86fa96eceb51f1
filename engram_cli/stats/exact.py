"""Every n-gram of a corpus with its count: chunks in, samples that miss nothing out.

For corpora whose n-grams fit in memory; the counters and the sample do without. N-grams are told
apart by the 64-bit hash of `stats.distinct`: 2-grams never meet, of 100 million longer ones two do
with a chance of 1 in 3,700.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats import kernels
from engram_cli.stats.collector import BaseCollector
from engram_cli.stats.distinct import EVERYTHING, NgramSample, hash_ngrams
from engram_cli.stats.state import State, check, numbered, part_of, take
from engram_cli.stats.token_chunk import TokenChunk
from engram_cli.stats.totals import Counts

_FIRST_SLOTS = 2**20
_BLOCK = 2**17  # n-grams whose tokens are kept together
_FILL = 0.7  # of the slots of a table at most
_STEP = 2**17
EXACT = "exact"  # begins the names of the arrays of all n-grams in other partials
_SLOT = 16  # bytes: hash and count side by side


class Budget:
    """Bytes that several tables may take together, from several threads."""

    def __init__(self, size: int | None) -> None:
        """`size`: None where the free memory is unknown."""
        self.size = size
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, amount: int, what: str) -> None:
        """Take `amount` more bytes, or give some back. Raises InputError when it is too much."""
        with self._lock:
            if amount > 0 and self.size is not None and self._taken + amount > self.size:
                raise InputError(
                    f"{what} need {_mb(self._taken + amount)} or more, "
                    f"{_mb(self.size)} of memory may be used",
                    "leave out --exact: the sample gives the same figures and their errors",
                )
            self._taken += amount


class ExactNgrams(BaseCollector):
    """Counts all n-grams of one order, in a table that doubles."""

    name = "exact"

    def __init__(
        self, layout: HashLayout, order: int, budget: Budget, entries: int | None = None
    ) -> None:
        """`entries`: room at first, for tables of which there are many. Raises InputError when not
        even an empty table fits."""
        self.order = order
        self._heads = layout.heads
        self._filler = layout.filler_id
        self._budget = budget
        self._ids = layout.compressed_size
        self._found: NgramSample | None = None
        self._first = _FIRST_SLOTS if entries is None else entries
        self._block = _BLOCK if entries is None else min(_BLOCK, entries)
        self._state = np.zeros(2, dtype=np.int64)
        self._blocks: list[NDArray[np.int32]] = []
        self._slots = self._new_slots(self._first)
        self._new_block()

    @property
    def memory(self) -> int:
        """What it begins with; more is asked of the budget."""
        return self._first * _SLOT + self._block_bytes

    def push(self, chunk: TokenChunk) -> None:
        """Count the n-grams at every position. Raises InputError when memory does not suffice."""
        window, done = chunk.window, 0
        while done < len(window):
            done = kernels.count_ngrams(
                window.tokens,
                window.seen,
                self._filler,
                self.order,
                done,
                int(_FILL * (len(self._slots) // 2)),
                self._slots,
                self._blocks[-1],
                self._state,
            )
            if self._state[1] == len(self._blocks[-1]):
                self._new_block()
            if self._state[0] >= int(_FILL * (len(self._slots) // 2)):
                self._grow()

    def section(self, counts: Counts) -> None:
        """None: what was counted makes the other figures exact."""

    @classmethod
    def blank_for(cls, layout: HashLayout, order: int) -> ExactNgrams:
        """One that can absorb a partial, in as much memory as there is."""
        return cls(layout, order, Budget(None))

    def sample(self) -> NgramSample:
        """All n-grams by ascending hash. The table is given up: nothing can be counted after."""
        if self._found is None:
            self._found = self._drawn()
        return self._found

    def partial(self) -> State:
        """All n-grams and their counts; the table is given up. No hashes: they follow."""
        return every_state(self.sample())

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError, InputError when memory does not suffice."""
        size = len(state.get("counts", ()))
        self._budget.take(size * self._block_bytes // self._block, self._what())
        self._found = both_of(self.sample(), read_every(state, self.order, range(self._ids)))

    def _drawn(self) -> NgramSample:
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
        return _every(hashes[order], counts[order], tokens[order])

    def state(self) -> State:
        """The table, and the tokens block by block; no copies."""
        blocks = [*self._blocks[:-1], self._blocks[-1][: self._state[1]]]
        return {"slots": self._slots} | numbered([{"tokens": block} for block in blocks])

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError, InputError when memory does not suffice."""
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
        """Of a block's tokens, and of what the figures will take for as many n-grams: the tokens
        once more, hash, count and place, and a byte for each head."""
        return self._block * (2 * 4 * self.order + 24 + self._heads)

    def _new_block(self) -> None:
        self._budget.take(self._block_bytes, self._what())
        self._blocks.append(np.zeros((self._block, self.order), dtype=np.int32))
        self._state[1] = 0

    def _new_slots(self, count: int) -> NDArray[np.uint64]:
        self._budget.take(count * _SLOT, self._what())
        return np.zeros(2 * count, dtype=np.uint64)

    def _grow(self) -> None:
        """Move to a table of twice the size; both are there for a while."""
        slots = self._new_slots(len(self._slots))
        kernels.move_slots(self._slots, slots)
        self._budget.take(-(len(self._slots) // 2) * _SLOT, self._what())
        self._slots = slots

    def _what(self) -> str:
        return f"all {self.order}-grams, {int(self._state[0]):,} so far,"


def _every(
    hashes: NDArray[np.uint64], counts: NDArray[np.uint64], tokens: NDArray[np.int32]
) -> NgramSample:
    return NgramSample(
        order=tokens.shape[1],
        size=max(len(hashes), 1),
        threshold=EVERYTHING,
        hashes=hashes,
        counts=counts,
        tokens=tokens,
    )


def every_state(every: NgramSample) -> State:
    """All n-grams of an order as arrays. No hashes: they follow."""
    return {"tokens": every.tokens.reshape(-1), "counts": every.counts}


def read_every(state: State, order: int, ids: range) -> NgramSample:
    """All n-grams in a `state`, of ids in `ids`. Raises ArtifactError."""
    counts = take(state, "counts", np.uint64, (-1,))
    tokens = take(state, "tokens", np.int32, (len(counts) * order,)).reshape(-1, order)
    check(not len(tokens) or (int(tokens.min()) in ids and int(tokens.max()) in ids), "tokens")
    hashes = hash_ngrams(tokens)
    check(bool(np.all(hashes[1:] > hashes[:-1])), "tokens")
    return _every(hashes, counts, tokens)


def both_of(one: NgramSample, two: NgramSample) -> NgramSample:
    """All n-grams of both."""
    size = max(len(one.hashes) + len(two.hashes), 1)
    both = replace(one, size=size).merge(replace(two, size=size))
    return replace(both, size=max(len(both.hashes), 1))


def exact_ngrams(
    layout: HashLayout, budget: Budget, entries: int | None = None
) -> tuple[ExactNgrams, ...]:
    """A table for each order, within a budget together. Raises InputError."""
    return tuple(ExactNgrams(layout, order, budget, entries) for order in layout.orders)


def _mb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.0f} MB"

"""How often a cache of the last rows used has the next one: rows in, hit rates by its size out.

The stack distance of a look-up is how many other rows were used since its row was; a cache of C
rows that throws out the least recently used one has it when the distance is below C. Distances
are counted among a sample of rows chosen by hash, and scaled. A cache is empty where a partition of
the corpus begins, and again after every `PARTITION` tokens of it. Source: Waldspurger et al.,
"Efficient MRC construction with SHARDS" (FAST 2015). What is scaled here are the misses: the most
used rows, which the sample has or has not by chance, have few of them.

The error has two parts. Of C rows in a cache the sample has r C give or take sqrt(r C), so the size
is known to a factor; and the misses of the rows that were followed stand for those of all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.locality import kernels
from engram_cli.stats.state import State, check, scalar, take, take_into, take_scalar
from engram_cli.stats.token_chunk import TokenChunk

SAMPLED_ROWS = 2**16
PARTITION = 2**26  # the tokens after which the cache is empty again
LEAST_SAMPLED = 128  # the smallest cache of a sample holds so many rows of it: its size to 9 %
LEAST_CACHE = 16  # where all rows are followed
GROUPS = 32  # of the rows followed, whose misses are counted apart


class LruObserver:
    """Follows the rows of a column; `rows` is how many it has."""

    def __init__(
        self, rows: int, sampled_rows: int = SAMPLED_ROWS, partition: int = PARTITION
    ) -> None:
        self.rows = rows
        self._partition = partition
        self._highest = np.uint32(2**32 - 1)
        if rows > sampled_rows:
            self._highest = np.uint32(2**32 * sampled_rows // rows - 1)
        followed = int(kernels.count_sampled(rows, self._highest))
        self.rate = followed / rows
        self._slots = np.zeros(2 << (2 * followed).bit_length(), dtype=np.uint64)
        self._tree = np.zeros((4 << followed.bit_length()) + 1, dtype=np.int64)
        self._state = np.zeros(2, dtype=np.int64)
        # A distance is of the class i when caches from the i-th size on are large enough for it.
        reaches = [max(round(size * self.rate), 1) for size in self.cache_rows()]
        distances = np.arange(followed + 1)
        self._classes = np.searchsorted(reaches, distances, side="right").astype(np.uint8)
        self.found = np.zeros((GROUPS, len(reaches) + 1), dtype=np.int64)
        self.tokens = 0

    @property
    def memory(self) -> int:
        """The bytes of the tables, and of renumbering."""
        return 2 * self._slots.nbytes + self._tree.nbytes + self._classes.nbytes

    def push_rows(self, rows: NDArray[np.uint32], chunk: TokenChunk) -> None:
        """Use the rows of a chunk, one after the other."""
        begin = 0
        while begin < len(rows):
            at = chunk.position + begin
            if at % self._partition == 0:
                self._empty()
            end = min(len(rows), begin + self._partition - at % self._partition)
            self._use(rows[begin:end], self.found)
            begin = end
        self.tokens += len(rows)

    def state(self) -> State:
        """The rows in the order of their last use, and what was counted."""
        slots = self._slots.reshape(-1, 2)
        used = slots[slots[:, 0] > 0]
        order = np.argsort(used[:, 1])
        return {"used": (used[order, 0] - np.uint64(1)).astype(np.uint32)} | self.partial()

    def restore(self, state: State) -> None:
        """Go on from a `state`: its rows are used once more, in their order. Raises ArtifactError.

        When they were used does not matter, only in which order.
        """
        used = take(state, "used", np.uint32, (-1,))
        sound = not len(used) or int(used.max()) < self.rows
        check(sound and len(np.unique(used)) == len(used), "used")
        self._empty()
        self._use(used, np.zeros_like(self.found))
        take_into(state, "found", self.found)
        self.tokens = take_scalar(state, "tokens")

    def add(self, other: LruObserver) -> None:
        """Take in what was counted elsewhere."""
        self.absorb(other.partial())

    def partial(self) -> State:
        """Look-ups by group and class of their distances, and how many there were of all rows."""
        return {"found": self.found, "tokens": scalar(self.tokens)}

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError."""
        found = take(state, "found", np.int64, self.found.shape)
        check(bool(np.all(found >= 0)), "found")
        self.found += found
        self.tokens += take_scalar(state, "tokens")

    def cache_rows(self) -> list[int]:
        """The sizes looked at: powers of two, up to all rows."""
        least = LEAST_CACHE if self.rate == 1.0 else LEAST_SAMPLED / max(self.rate, 1e-9)
        sizes = [1 << power for power in range(4, 40) if least <= 1 << power < self.rows]
        return [*sizes, self.rows]

    def hit_rates(self) -> list[float]:
        """The share of the look-ups that a cache of each size has."""
        misses = self._misses().sum(axis=0) / max(self.tokens * self.rate, 1.0)
        return [min(max(1.0 - float(share), 0.0), 1.0) if self.tokens else 0.0 for share in misses]

    def errors(self) -> list[float]:
        """The standard errors of the hit rates; 0 where all rows are followed."""
        sizes, rates = np.array(self.cache_rows(), dtype=np.float64), np.array(self.hit_rates())
        if self.rate == 1.0 or not self.tokens:
            return [0.0] * len(sizes)
        slopes = np.gradient(rates, np.log(sizes)) if len(sizes) > 1 else np.zeros(1)
        unseen = 1.0 - self.rate
        of_size = np.sqrt(unseen * (1.0 - sizes / self.rows) / (self.rate * sizes))
        spread = GROUPS * np.var(self._misses(), axis=0, ddof=1)
        of_misses = np.sqrt(unseen * spread) / (self.rate * self.tokens)
        return [float(error) for error in np.hypot(slopes * of_size, of_misses)]

    def _misses(self) -> NDArray[np.int64]:
        """int64[GROUPS, sizes]: look-ups of the rows followed that miss a cache of each size."""
        return np.asarray(np.cumsum(self.found[:, :0:-1], axis=1)[:, ::-1])

    def _empty(self) -> None:
        for array in (self._slots, self._tree, self._state):
            array.fill(0)

    def _use(self, rows: NDArray[np.uint32], found: NDArray[np.int64]) -> None:
        kernels.stack_distances(
            rows, self._highest, self._slots, self._tree, self._state, self._classes, found
        )

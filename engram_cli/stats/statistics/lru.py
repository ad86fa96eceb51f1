"""How often a cache of the last rows used holds the next one: hit rates by its size.

The stack distance of a look-up is how many other rows were used since its row was; a cache of C
rows that evicts the least recently used one holds it if the distance is below C. Distances are
counted among a sample of rows chosen by hash, and scaled. A cache is empty where a partition of the
corpus begins, and again after every `PARTITION` tokens of it. Source: Waldspurger et al.,
"Efficient MRC construction with SHARDS" (FAST 2015). What is scaled here are the misses: the most
used rows, which the sample has or has not by chance, have few of them.

The error has two parts. Of C rows in a cache the sample has r C give or take sqrt(r C), so the size
is known to a factor; and the misses of the rows that were followed stand for those of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.registry import LazyModule
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.state import State, check, scalar, take, take_into, take_scalar

kernels = LazyModule("engram_cli.stats.counting.collector_kernels")

SAMPLED_ROWS = 2**16
PARTITION = 2**26  # the tokens after which the cache is empty again
LEAST_SAMPLED = 128  # the smallest cache of a sample holds so many rows of it: its size to 9 %
LEAST_CACHE = 16  # if all rows are followed
GROUPS = 32  # of the rows followed, whose misses are counted apart


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LruCounts:
    """The look-ups of a column of `rows` rows, of which a share `rate` was followed.

    `found` int64[GROUPS, s + 1]: the look-ups of the rows followed, by group and by the smallest of
    the s cache sizes that holds their row; the last for first uses. `tokens`: of all rows.
    """

    rows: int
    rate: float
    found: NDArray[np.int64]
    tokens: int

    @property
    def cache_rows(self) -> list[int]:
        """The cache sizes: powers of two, and all rows."""
        return cache_sizes(self.rows, self.rate)

    def hit_rates(self) -> tuple[float, ...]:
        """Return the share of the look-ups that a cache of each size holds."""
        misses = self._misses().sum(axis=0) / max(self.tokens * self.rate, 1.0)
        if not self.tokens:
            return (0.0,) * len(misses)
        return tuple(min(max(1.0 - float(share), 0.0), 1.0) for share in misses)

    def errors(self) -> tuple[float, ...]:
        """Return the standard errors of the hit rates; 0 if all rows are followed."""
        sizes, rates = np.array(self.cache_rows, dtype=np.float64), np.array(self.hit_rates())
        if self.rate == 1.0 or not self.tokens:
            return (0.0,) * len(sizes)
        slopes = np.gradient(rates, np.log(sizes)) if len(sizes) > 1 else np.zeros(1)
        unseen = 1.0 - self.rate
        of_size = np.sqrt(unseen * (1.0 - sizes / self.rows) / (self.rate * sizes))
        spread = GROUPS * np.var(self._misses(), axis=0, ddof=1)
        of_misses = np.sqrt(unseen * spread) / (self.rate * self.tokens)
        return tuple(float(error) for error in np.hypot(slopes * of_size, of_misses))

    def _misses(self) -> NDArray[np.int64]:
        """Return int64[GROUPS, s]: look-ups of rows followed that miss a cache of each size."""
        return np.asarray(np.cumsum(self.found[:, :0:-1], axis=1)[:, ::-1])

    def merge(self, other: LruCounts) -> LruCounts:
        """Return those of both parts."""
        return replace(self, found=self.found + other.found, tokens=self.tokens + other.tokens)

    def state(self) -> State:
        """Return what was counted as named arrays."""
        return {"found": self.found, "tokens": scalar(self.tokens)}


def cache_sizes(rows: int, rate: float) -> list[int]:
    """Return the cache sizes for a column of `rows` rows of which a share `rate` is followed."""
    least = LEAST_CACHE if rate == 1.0 else LEAST_SAMPLED / max(rate, 1e-9)
    sizes = [1 << power for power in range(4, 40) if least <= 1 << power < rows]
    return [*sizes, rows]


def read_lru(rows: int, state: State) -> LruCounts:
    """Return the counts in a `state`, of a column of `rows` rows. Raises ArtifactError."""
    rate = _followed(rows, SAMPLED_ROWS)[1] / rows
    found = take(state, "found", np.int64, (GROUPS, len(cache_sizes(rows, rate)) + 1))
    check(bool(np.all(found >= 0)), "found")
    return LruCounts(rows=rows, rate=rate, found=found, tokens=take_scalar(state, "tokens"))


def _followed(rows: int, sampled_rows: int) -> tuple[np.uint32, int]:
    """Return up to which hash rows are followed, and how many of them there are."""
    highest = np.uint32(2**32 - 1)
    if rows > sampled_rows:
        highest = np.uint32(2**32 * sampled_rows // rows - 1)
    return highest, int(kernels.count_sampled(rows, highest))


class LruObserver:
    """Follows the rows of a column; a `RowObserver`."""

    def __init__(
        self, rows: int, sampled_rows: int = SAMPLED_ROWS, partition: int = PARTITION
    ) -> None:
        """`rows`: how many the column has; `sampled_rows`: how many are followed, about."""
        self._rows = rows
        self._partition = partition
        self._highest, followed = _followed(rows, sampled_rows)
        self._rate = followed / rows
        self._slots = np.zeros(2 << (2 * followed).bit_length(), dtype=np.uint64)
        self._tree = np.zeros((4 << followed.bit_length()) + 1, dtype=np.int64)
        self._state = np.zeros(2, dtype=np.int64)
        # A distance is of the class i when caches from the i-th size on are large enough for it.
        sizes = cache_sizes(rows, self._rate)
        reaches = [max(round(size * self._rate), 1) for size in sizes]
        distances = np.arange(followed + 1)
        self._classes = np.searchsorted(reaches, distances, side="right").astype(np.uint8)
        self._found = np.zeros((GROUPS, len(sizes) + 1), dtype=np.int64)
        self._tokens = 0

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
            self._use(rows[begin:end], self._found)
            begin = end
        self._tokens += len(rows)

    def counts(self) -> LruCounts:
        """Return what was counted; it shares memory."""
        return LruCounts(rows=self._rows, rate=self._rate, found=self._found, tokens=self._tokens)

    def state(self) -> State:
        """Return the rows in the order of their last use, and what was counted."""
        slots = self._slots.reshape(-1, 2)
        used = slots[slots[:, 0] > 0]
        order = np.argsort(used[:, 1])
        rows = (used[order, 0] - np.uint64(1)).astype(np.uint32)
        return {"used": rows} | self.counts().state()

    def restore(self, state: State) -> None:
        """Continue from a `state`: its rows are used once more, in their order.

        When they were used does not matter, only in which order. Raises ArtifactError.
        """
        used = take(state, "used", np.uint32, (-1,))
        sound = not len(used) or int(used.max()) < self._rows
        check(sound and len(np.unique(used)) == len(used), "used")
        self._empty()
        self._use(used, np.zeros_like(self._found))
        take_into(state, "found", self._found)
        self._tokens = take_scalar(state, "tokens")

    def _empty(self) -> None:
        for array in (self._slots, self._tree, self._state):
            array.fill(0)

    def _use(self, rows: NDArray[np.uint32], found: NDArray[np.int64]) -> None:
        kernels.stack_distances(
            rows, self._highest, self._slots, self._tree, self._state, self._classes, found
        )

"""How often a cache of the last rows used has the next one: rows in, hit rates by its size out.

The stack distance of a look-up is how many other rows were used since its row was; a cache of C
rows that throws out the least recently used one has it when the distance is below C. Distances
are counted among a sample of rows chosen by hash, and scaled. A cache is empty where a partition of
the corpus begins, and again after every `PARTITION` tokens of it. Source: Waldspurger et al.,
"Efficient MRC construction with SHARDS" (FAST 2015), corrected for how much the sample caught.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.locality import kernels
from engram_cli.stats.passage import Passage
from engram_cli.stats.state import State, check, scalar, take, take_into, take_scalar

SAMPLED_ROWS = 2**13
PARTITION = 2**26  # the tokens after which the cache is empty again
LEAST_SAMPLED = 16  # the smallest cache that is looked at holds so many rows of the sample


class LruWatcher:
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
        self.histogram = np.zeros(followed + 1, dtype=np.int64)
        self.sampled = self.tokens = 0

    @property
    def memory(self) -> int:
        """The bytes of the tables, and of renumbering."""
        return 2 * self._slots.nbytes + self._tree.nbytes + self.histogram.nbytes

    def push_rows(self, rows: NDArray[np.uint32], passage: Passage) -> None:
        """Use the rows of a passage, one after the other."""
        begin = 0
        while begin < len(rows):
            at = passage.position + begin
            if at % self._partition == 0:
                for array in (self._slots, self._tree, self._state):
                    array.fill(0)
            end = min(len(rows), begin + self._partition - at % self._partition)
            self.sampled += kernels.stack_distances(
                rows[begin:end],
                self._highest,
                self._slots,
                self._tree,
                self._state,
                self.histogram,
            )
            begin = end
        self.tokens += len(rows)

    def state(self) -> State:
        """The rows in the order of their last use, and what was counted."""
        slots = self._slots.reshape(-1, 2)
        used = slots[slots[:, 0] > 0]
        order = np.argsort(used[:, 1])
        return {
            "used": (used[order, 0] - np.uint64(1)).astype(np.uint32),
            "histogram": self.histogram,
            "sampled": scalar(self.sampled),
            "tokens": scalar(self.tokens),
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`: its rows are used once more, in their order. Raises ArtifactError.

        When they were used does not matter, only in which order.
        """
        used = take(state, "used", np.uint32, (-1,))
        sound = not len(used) or int(used.max()) < self.rows
        check(sound and len(np.unique(used)) == len(used), "used")
        first_uses = np.zeros_like(self.histogram)
        for array in (self._slots, self._tree, self._state):
            array.fill(0)
        kernels.stack_distances(
            used, self._highest, self._slots, self._tree, self._state, first_uses
        )
        take_into(state, "histogram", self.histogram)
        self.sampled = take_scalar(state, "sampled")
        self.tokens = take_scalar(state, "tokens")

    def add(self, other: LruWatcher) -> None:
        """Take in what was counted elsewhere."""
        self.absorb(other.partial())

    def partial(self) -> State:
        """Distances and how many look-ups they are of."""
        return {
            "histogram": self.histogram,
            "sampled": scalar(self.sampled),
            "tokens": scalar(self.tokens),
        }

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError."""
        histogram = take(state, "histogram", np.int64, self.histogram.shape)
        check(bool(np.all(histogram >= 0)), "histogram")
        self.histogram += histogram
        self.sampled += take_scalar(state, "sampled")
        self.tokens += take_scalar(state, "tokens")

    def cache_rows(self) -> list[int]:
        """The sizes looked at: powers of two, up to all rows."""
        least = int(LEAST_SAMPLED / max(self.rate, 1e-9))
        sizes = [1 << power for power in range(4, 40) if least <= 1 << power < self.rows]
        return [*sizes, self.rows]

    def hit_rates(self) -> list[float]:
        """The share of the look-ups that a cache of each size has."""
        if not self.tokens:
            return [0.0 for _ in self.cache_rows()]
        expected = self.tokens * self.rate
        hits = np.cumsum(self.histogram)
        rates = []
        for size in self.cache_rows():
            reach = min(max(round(size * self.rate), 1), len(hits))
            # Look-ups that the sample caught too many or few are those of the most frequent rows.
            caught = float(hits[reach - 1]) + expected - self.sampled
            rates.append(min(max(caught / expected, 0.0), 1.0))
        return rates

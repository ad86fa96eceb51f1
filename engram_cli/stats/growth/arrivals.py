"""When n-grams and rows are first met if the segments come in random order; partials that merge.

A segment arrives at the time its key says, between 0 and 1. The least arrival of an n-gram is that
of the first segment that holds it, so how many n-grams have arrived by a time t is how many a
random share t of the corpus holds. Nothing of it depends on the order of reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.stats.distinct import EVERYTHING, next_threshold, sound_entries, table_entries
from engram_cli.stats.growth import kernels
from engram_cli.stats.kernels import drop_from
from engram_cli.stats.state import State, check, scalar, take, take_into, take_scalar
from engram_cli.stats.token_chunk import TokenChunk

NEVER = 2**64 - 1
MOST_ROWS = 2**16  # the rows followed of a column
BINS = 4096  # of the arrival times
_NO_TOKENS = np.empty((0, 0), dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NgramArrivals:
    """The `size` n-grams with the smallest hashes, those below `threshold`.

    `hashes` uint64[S] ascending, `arrivals` uint64[S].
    """

    size: int
    threshold: int
    hashes: NDArray[np.uint64]
    arrivals: NDArray[np.uint64]

    @property
    def share(self) -> float:
        """The share of all n-grams that is in the sample."""
        return self.threshold / EVERYTHING

    def merge(self, other: NgramArrivals) -> NgramArrivals:
        """Those of both corpora. Raises MismatchError."""
        if self.size != other.size:
            raise MismatchError(
                f"samples of {self.size} and of {other.size} n-grams do not merge",
                "count both corpora alike",
            )
        hashes = np.concatenate([self.hashes, other.hashes])
        arrivals = np.concatenate([self.arrivals, other.arrivals])
        order = np.lexsort((arrivals, hashes))
        hashes, first = np.unique(hashes[order], return_index=True)
        threshold = min(self.threshold, other.threshold)
        return _lowest(self.size, threshold, hashes, arrivals[order][first])


class ArrivalSampler:
    """Draws `NgramArrivals` of one order from a stream of chunks; a `NgramObserver`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limit = size + size // 2
        self._slots = np.zeros(2 * table_entries(size), dtype=np.uint64)
        self._entries = np.zeros(1, dtype=np.int64)
        self._threshold = EVERYTHING

    def push_ngrams(self, hashes: NDArray[np.uint64], chunk: TokenChunk) -> None:
        """Meet the n-grams at every position of a chunk, by their hashes."""
        done = 0
        while done < len(hashes):
            done = kernels.sample_arrivals(
                hashes,
                done,
                np.uint64(self._threshold - 1),
                self._limit,
                chunk.segments.begins,
                chunk.segments.keys,
                self._slots,
                self._entries,
            )
            if self._entries[0] > self._limit:
                self._lower()

    def sample(self) -> NgramArrivals:
        """What was met."""
        slots = self._slots.reshape(-1, 2)
        held = slots[slots[:, 0] > 0]
        held = held[np.argsort(held[:, 0])]
        return _lowest(self._size, self._threshold, held[:, 0], held[:, 1])

    def state(self) -> State:
        """The entries and the threshold."""
        slots = self._slots.reshape(-1, 2)
        held = slots[slots[:, 0] > 0]
        highest = scalar(self._threshold - 1, np.uint64)
        return {"highest": highest, "hashes": held[:, 0], "arrivals": held[:, 1]}

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        highest = take_scalar(state, "highest", 0, EVERYTHING - 1)
        hashes = take(state, "hashes", np.uint64, (-1,))
        arrivals = take(state, "arrivals", np.uint64, (len(hashes),))
        check(sound_entries(hashes, highest, self._limit), "hashes")
        self._threshold = highest + 1
        self._slots.fill(0)
        kernels.fill_arrivals(hashes, arrivals, self._slots)
        self._entries[0] = len(hashes)

    def _lower(self) -> None:
        self._threshold = next_threshold(self._slots, self._limit + 1, self._size)
        threshold = np.uint64(self._threshold)
        self._entries[0] = drop_from(self._slots, _NO_TOKENS, threshold)


class RowArrivals:
    """The least arrivals of the rows of a column that a power of two divides."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._shift = max(-(-rows // MOST_ROWS) - 1, 0).bit_length()
        followed = -(-rows >> self._shift)
        self.arrivals = np.full(followed, NEVER, dtype=np.uint64)

    def push_rows(self, rows: NDArray[np.uint32], chunk: TokenChunk) -> None:
        """Meet the rows of the tokens of a chunk."""
        mask = np.uint32((1 << self._shift) - 1)
        segments = chunk.segments
        shift = np.uint32(self._shift)
        kernels.observe_rows(rows, mask, shift, segments.begins, segments.keys, self.arrivals)

    def state(self) -> State:
        """The arrivals."""
        return {"arrivals": self.arrivals}

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        take_into(state, "arrivals", self.arrivals)

    def merge(self, other: RowArrivals) -> RowArrivals:
        """Those of both corpora."""
        both = RowArrivals(self.rows)
        np.minimum(self.arrivals, other.arrivals, out=both.arrivals)
        return both


def _lowest(
    size: int, threshold: int, hashes: NDArray[np.uint64], arrivals: NDArray[np.uint64]
) -> NgramArrivals:
    below = len(hashes)
    if threshold != EVERYTHING:
        below = int(np.searchsorted(hashes, np.uint64(threshold)))
    if below > size:
        threshold, below = int(hashes[size]), size
    return NgramArrivals(
        size=size, threshold=threshold, hashes=hashes[:below], arrivals=arrivals[:below]
    )

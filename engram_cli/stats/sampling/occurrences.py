"""Samples the positions of a corpus uniformly: an n-gram that occurs often is in the sample often.

The sample of n-grams (`distinct`) holds each distinct n-gram with the same chance, so it misses the
few that decide every figure weighted by use. This one draws positions: those with the smallest
64-bit priorities. A priority is a hash of the segment's key and of the position in the segment, so
the sample does not depend on the order of reading, on splits or on threads, and samples of two
corpora merge into the sample of both. An n-gram with a share p of the positions is missed with a
chance of exp(-k p), k the size of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.registry import LazyModule
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.distinct import hash_ngrams
from engram_cli.stats.state import State, check, scalar, take, take_scalar
from engram_cli.stats.totals import Counts

kernels = LazyModule("engram_cli.stats.counting.kernels")

# An n-gram that is one in 5,000 positions is drawn 13 times, and missed with a chance of 2e-6; a
# share of the positions has a standard error of 0.2 % at most. Twice as many cost twice the time.
POSITIONS = 2**16
MOST_POSITIONS = 2**20
_EVERY = 2**64 - 1
_LEAST_PUSHED = 2**12  # tokens at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OccurrenceSample:
    """The `size` positions with the smallest priorities, all of them if there are no more.

    `priorities` uint64[S] ascending; `ngrams` int32[S, N]: the longest n-gram that ends at each,
    oldest token first, the filler at blocked positions.
    """

    size: int
    priorities: NDArray[np.uint64]
    ngrams: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.priorities)

    def of_order(self, order: int) -> NDArray[np.int32]:
        """Return int32[S, order]: the n-gram of an order at each position."""
        return np.ascontiguousarray(self.ngrams[:, self.ngrams.shape[1] - order :])

    def merge(self, other: OccurrenceSample) -> OccurrenceSample:
        """Return the sample of both corpora. Raises MismatchError for another size."""
        if self.size != other.size:
            raise MismatchError(
                f"samples of {self.size:,} and of {other.size:,} positions do not merge",
                "count all parts with the same version of engram",
            )
        return _first(
            self.size,
            np.concatenate([self.priorities, other.priorities]),
            np.concatenate([self.ngrams, other.ngrams]),
        )

    def state(self) -> State:
        """Return all of it as named arrays."""
        return {
            "size": scalar(self.size),
            "priorities": self.priorities,
            "ngrams": self.ngrams.reshape(-1),
        }

    def result(self, counts: Counts) -> None:
        """Return None: figures by use and the most frequent n-grams are computed from it."""


def _first(
    size: int, priorities: NDArray[np.uint64], ngrams: NDArray[np.int32]
) -> OccurrenceSample:
    """Return the first `size` by priority; equal ones, as of a file counted twice, by tokens."""
    order = np.lexsort([*ngrams.T[::-1], priorities])[:size]
    return OccurrenceSample(size=size, priorities=priorities[order], ngrams=ngrams[order])


def read_occurrences(layout: HashLayout, state: State) -> OccurrenceSample:
    """Return the sample in a `state`. Raises ArtifactError."""
    width = layout.max_order
    size = take_scalar(state, "size", 1, MOST_POSITIONS)
    priorities = take(state, "priorities", np.uint64, (-1,))
    check(len(priorities) <= size and bool(np.all(priorities[1:] >= priorities[:-1])), "priorities")
    ngrams = take(state, "ngrams", np.int32, (len(priorities) * width,)).reshape(-1, width)
    inside = not len(ngrams) or 0 <= ngrams.min() <= ngrams.max() < layout.compressed_size
    check(bool(inside), "ngrams")
    return OccurrenceSample(size=size, priorities=priorities, ngrams=ngrams)


class Occurrences(Collector):
    """Draws the sample from a stream of chunks."""

    name = "occurrences"
    ordered = False

    def __init__(self, layout: HashLayout, size: int = POSITIONS) -> None:
        self.size = size
        self._width = layout.max_order
        self._filler = layout.filler_id
        self._highest = _EVERY
        self._priorities = [np.empty(0, dtype=np.uint64)]
        self._ngrams = [np.empty((0, self._width), dtype=np.int32)]
        self._held = 0

    @property
    def memory(self) -> int:
        """The most bytes it takes: what it holds, and copies while it is cut."""
        return 2 * (3 * self.size + _LEAST_PUSHED) * (8 + 4 * self._width)

    def push(self, chunk: TokenChunk) -> None:
        """Draw from a chunk."""
        begin = 0
        while begin < len(chunk):
            # Until the threshold has fallen most positions are drawn: fewer at a time.
            step = len(chunk) if self._highest < _EVERY // 4 else max(self.size, _LEAST_PUSHED)
            end = min(begin + step, len(chunk))
            self._draw(chunk.part(begin, end))
            begin = end

    def _draw(self, chunk: TokenChunk) -> None:
        places = np.empty(len(chunk), dtype=np.int64)
        priorities = np.empty(len(chunk), dtype=np.uint64)
        drawn = kernels.draw_positions(
            chunk.segments.begins,
            chunk.segments.keys,
            len(chunk),
            chunk.segments.carried,
            np.uint64(self._highest),
            places,
            priorities,
        )
        if not drawn:
            return
        window = chunk.window
        ngrams = np.empty((drawn, self._width), dtype=np.int32)
        kernels.ngrams_at(window.tokens, window.seen, self._filler, places[:drawn], ngrams)
        self._priorities.append(priorities[:drawn].copy())
        self._ngrams.append(ngrams)
        self._held += drawn
        if self._held > 2 * self.size:
            self._cut()

    def _cut(self) -> None:
        """Keep the smallest priorities; of those equal to the greatest of them, all."""
        priorities, ngrams = np.concatenate(self._priorities), np.concatenate(self._ngrams)
        if len(priorities) > self.size:
            self._highest = int(np.partition(priorities, self.size - 1)[self.size - 1])
            kept = priorities <= np.uint64(self._highest)
            priorities, ngrams = priorities[kept], ngrams[kept]
        self._priorities, self._ngrams, self._held = [priorities], [ngrams], len(priorities)

    def partial(self) -> OccurrenceSample:
        """Return the sample of all that was pushed."""
        self._cut()
        return _first(self.size, self._priorities[0], self._ngrams[0])

    def state(self) -> State:
        """Return what is held."""
        self._cut()
        return {
            "highest": scalar(self._highest, np.uint64),
            "priorities": self._priorities[0],
            "ngrams": self._ngrams[0],
        }

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        self._highest = take_scalar(state, "highest", 0, _EVERY)
        priorities = take(state, "priorities", np.uint64, (-1,))
        ngrams = take(state, "ngrams", np.int32, (len(priorities), self._width))
        check(not len(priorities) or int(priorities.max()) <= self._highest, "priorities")
        self._priorities, self._ngrams, self._held = [priorities], [ngrams], len(priorities)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """The U distinct n-grams of one order in a sample of `positions` positions.

    `hashes` uint64[U] ascending; `tokens` int32[U, order]; `times` int64[U]: how often each was
    drawn.
    """

    order: int
    positions: int
    hashes: NDArray[np.uint64]
    tokens: NDArray[np.int32]
    times: NDArray[np.int64]


def drawn_ngrams(sample: OccurrenceSample, orders: Sequence[int]) -> tuple[Drawn, ...]:
    """Return the n-grams of each order, told apart by the hash of `distinct`."""
    found = []
    for order in orders:
        tokens = sample.of_order(order)
        hashes, first, times = np.unique(hash_ngrams(tokens), return_index=True, return_counts=True)
        found.append(
            Drawn(
                order=order,
                positions=len(sample),
                hashes=hashes,
                tokens=tokens[first],
                times=times.astype(np.int64),
            )
        )
    return tuple(found)

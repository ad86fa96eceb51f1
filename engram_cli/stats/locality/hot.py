"""What the most used rows catch: row hits in, shares of the look-ups by share of the rows out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import StreamHasher
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.locality import kernels
from engram_cli.stats.totals import Counts

# The shares of the rows that are looked at: 1, 2 and 5 of each power of ten.
SHARES = (*(digit / 10**power for power in (4, 3, 2, 1) for digit in (1, 2, 5)), 1.0)
_LOW = 2**16
_STEP = 2**14  # held-out tokens hashed at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Rows by their hits: `values` int64[v] falling, `rows` how many have so many hits."""

    values: NDArray[np.int64]
    rows: NDArray[np.int64]

    def caught(self, weights: NDArray[np.float64], shares: NDArray[np.float64]) -> list[float]:
        """The share of the `weights` [v] that each share of the rows catches, the hottest first.

        Among rows with as many hits none comes first.
        """
        total = float(weights.sum())
        if total == 0.0:
            return [0.0] * len(shares)
        ranks = np.concatenate([[0], np.cumsum(self.rows)])
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        found = np.interp(shares * ranks[-1], ranks, sums) / total
        return [min(float(share), 1.0) for share in found]


def ranked(hits: NDArray[np.uint32]) -> Ranking:
    """The ranking of the rows of an order of a layer, of all its heads together."""
    low = np.zeros(_LOW, dtype=np.int64)
    more = kernels.hit_histogram(hits, low)
    high = np.unique(hits[hits >= _LOW], return_counts=True) if more else (low[:0], low[:0])
    present = np.flatnonzero(low)
    values = np.concatenate([present, high[0].astype(np.int64)])[::-1]
    return Ranking(values=values, rows=np.concatenate([low[present], high[1]])[::-1])


class HeldHits:
    """How many hits the rows have that a held-out sample looks up."""

    def __init__(self, counts: Counts, ids: NDArray[np.integer], starts: NDArray[np.bool_]) -> None:
        """`ids` [T] of segments that begin where `starts` says."""
        self._counts = counts
        self._hasher = StreamHasher(counts.layout)
        self._window = self._hasher.push(ids, starts=starts)

    def weights(self, layer: int, order: int, ranking: Ranking) -> NDArray[np.float64]:
        """How many held-out look-ups fall on rows of each value; `order` is an index."""
        layout = self._counts.layout
        entry, hits = layout.layer(layer), self._counts.hits[layer]
        ascending = ranking.values[::-1]
        found = np.zeros(len(ascending), dtype=np.float64)
        for begin in range(0, len(self._window), _STEP):
            part = self._window.part(begin, min(begin + _STEP, len(self._window)))
            columns = self._hasher.columns(part, layer)
            for column in range(order * layout.heads, (order + 1) * layout.heads):
                values = hits[entry.offsets[column] + columns[column].astype(np.int64)]
                places = np.searchsorted(ascending, values.astype(np.int64))
                found += np.bincount(places, minlength=len(found))
        return found[::-1]


def order_hits(
    layout: HashLayout, hits: NDArray[np.uint32], layer: int, order: int
) -> NDArray[np.uint32]:
    """The hits of all rows of an order, by its index, of a layer."""
    entry = layout.layer(layer)
    first, last = order * layout.heads, (order + 1) * layout.heads - 1
    return hits[entry.offsets[first] : entry.offsets[last] + entry.moduli[last]]

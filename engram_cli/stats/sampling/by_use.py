"""Estimates shares of all occurrences, such as how many look-ups find a row of their own.

A sample that is uniform over n-grams misses the frequent ones, which decide such a share. So the
share is the mean over positions drawn at random. The question at each position is whether its
n-gram is alone on a row, that is, whether the row has no more hits than the n-gram has occurrences.

The hits of a row are counted. The occurrences are known for an n-gram of the sample of n-grams. For
any other n-gram, the smallest number of hits among its rows is an upper bound, because each
occurrence adds a hit to each of the rows. The bound is exact if the n-gram is alone on one of them.
The sample of n-grams, for which both numbers are known, says how often that is so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import LayerHash
from engram_cli.stats.sampling.known import (
    LeastHits,
    SampleHits,
    head_hits,
    hits_of,
    least_hits,
    places_in,
)
from engram_cli.stats.sampling.occurrences import Drawn
from engram_cli.stats.totals import Counts

_TIES, _SIZES = 16, 33  # cells: rows with the least hits, and powers of two of those hits
_PRIOR = 8.0  # n-grams of a cell that count as much as all cells with as many ties


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Uses:
    """The U distinct n-grams of one order that stand for all occurrences.

    `tokens` int32[U, order]; `counts` uint64[U]: occurrences, or the least hits among the rows;
    `weights` float64[U]: shares of the occurrences, which sum to 1; `sure` float64[U]: the chance
    that a row with no more than `counts` hits is the n-gram's alone; `spread` float64[U]: that of
    the estimate of `sure`, squared, and `cells` int64[U]: which n-grams share it. `positions`: how
    many were drawn; `unseen`: the share that was not.
    """

    tokens: NDArray[np.int32]
    counts: NDArray[np.uint64]
    weights: NDArray[np.float64]
    sure: NDArray[np.float64]
    spread: NDArray[np.float64]
    cells: NDArray[np.int64]
    positions: int
    unseen: float

    def clean(self, counts: Counts, entry: LayerHash) -> NDArray[np.bool_]:
        """Return bool[H, U]: which rows of a layer have no more than `counts` hits."""
        return np.asarray(head_hits(counts, entry, self.tokens) <= self.counts, dtype=np.bool_)

    def mean(self, base: NDArray[np.float64], gain: NDArray[np.float64]) -> tuple[float, float]:
        """Return the mean over occurrences of a value, and its standard error.

        The value is `base` [U] if the n-gram is alone on none of its rows, and `gain` [U] more if
        `counts` are its own.
        """
        values = base + gain * self.sure
        mean = float(np.sum(self.weights * values))
        squares = float(np.sum(self.weights * (values - mean) ** 2)) + 1.0 / self.positions
        variance = self.unseen * squares / max(self.positions - 1, 1)
        doubt = (self.weights * gain) ** 2 * self.sure * (1.0 - self.sure)
        by_cell = np.bincount(self.cells, weights=self.weights * gain * np.sqrt(self.spread))
        return mean, math.sqrt(variance + float(np.sum(doubt)) + float(np.sum(by_cell**2)))


def uses_of(hits: SampleHits, drawn: Drawn) -> Uses | None:
    """Return what stands for all occurrences of an order; None if the sample is complete."""
    counts, sample = hits.counts, hits.sample
    if sample.exact or not len(drawn.times):
        return None
    layout = counts.layout
    found = least_hits(layout, layout.layers, drawn.tokens, hits_of(counts))
    places = places_in(sample, drawn.hashes)
    known = places >= 0
    chances, spread = _chances(hits.least(), sample.counts)
    cells = _cells(found)
    return Uses(
        tokens=drawn.tokens,
        counts=np.where(known, sample.counts[places], found.least),
        weights=drawn.times / drawn.positions,
        sure=np.where(known, 1.0, chances[cells]),
        spread=np.where(known, 0.0, spread[cells]),
        cells=cells,
        positions=drawn.positions,
        unseen=max(1.0 - drawn.positions / counts.tokens, 0.0),
    )


def _cells(found: LeastHits) -> NDArray[np.int64]:
    """Return int64[S]: the cells of n-grams by their least hits, and how many rows have no more."""
    size = np.frexp(np.maximum(found.least, 1).astype(np.float64))[1] - 1
    cells = (np.minimum(found.ties, _TIES) - 1) * _SIZES + np.minimum(size, _SIZES - 1)
    return np.asarray(cells, dtype=np.int64)


def _chances(
    found: LeastHits, counts: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return by cell the chance that the least hits at a position are the n-gram's occurrences,
    and the variance of this estimate, from n-grams with known `counts` [S].

    A position meets an n-gram as often as it occurs, so n-grams weigh as much as they occur,
    relative to the most frequent of the cell. What else falls on a row does not depend on that. So
    frequent n-grams, few of which are in a sample, get the chance of all n-grams with as many ties.
    """
    cells, shape = _cells(found), (_TIES, _SIZES)
    sizes = np.ldexp(1.0, np.arange(_SIZES) + 1)
    weights = counts / np.tile(sizes, _TIES)[cells]
    right = found.least == counts
    size = _TIES * _SIZES
    ngrams = np.bincount(cells, minlength=size).reshape(shape)
    among = np.bincount(cells[right], minlength=size).reshape(shape)
    pooled = (among.sum(axis=1) + 1.0) / (ngrams.sum(axis=1) + 2.0)
    alike = np.bincount(cells, weights=weights, minlength=size).reshape(shape)
    own = np.bincount(cells[right], weights=weights[right], minlength=size).reshape(shape)
    chances = (own + _PRIOR * pooled[:, None]) / (alike + _PRIOR)
    spread = chances * (1.0 - chances) / (alike + _PRIOR)
    return chances.reshape(-1), spread.reshape(-1)

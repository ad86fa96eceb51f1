"""How many distinct rows a batch looks up, from the hit rates of caches that were measured.

The last T look-ups use s(T) distinct rows, and the next one finds a new row as often as a cache of
the s(T) rows used last misses: ds/dT = miss(s). So one curve of hit rates says s for every T.
Source: Denning and Schwartz, "Properties of the working-set model" (1972); Xiang et al., "HOTL: a
higher order theory of locality" (ASPLOS 2013).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.statistics.locality import CacheHits

# First uses count as misses, also of rows that a longer corpus would have used before. Up to this
# part of the corpus batches hardly feel it; at a half, the result was 12.1 % instead of 10.7 %.
_PART = 8
_STEPS = 4096  # of the integration, even in log rows
# The error of reading a curve, and more of it far below the smallest cache that was measured.
# Against counting, 120 batches of 256 to 262,144 tokens, 20 k to 9 M rows: at most 1.9 errors off.
_READING = (0.004, 0.03)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShare:
    """The share of a batch's look-ups that are distinct rows, with its standard error.

    `at_most`: the batch is too long for the corpus that was counted, and repeats more.
    """

    share: float
    error: float
    at_most: bool


def batch_share(
    caches: Sequence[CacheHits],
    batch: int,
    counted_tokens: int,
    sizes: Mapping[int, tuple[float, float]],
) -> BatchShare | None:
    """Return the mean over the orders in `sizes`, for `batch` tokens that follow one another.

    `caches`: the hit rates of the section `locality`, of a corpus of `counted_tokens`; `sizes`: by
    order the rows of a head that was counted and of one that is planned. None if an order has no
    caches. Raises ValueError or IndexError for damaged ones.
    """
    shares, errors = [], []
    tokens = min(batch, counted_tokens)
    for order, (counted, planned) in sizes.items():
        own = [cache for cache in caches if cache.order == order]
        if not own:
            return None
        for cache in own:
            share, error = _distinct_share(cache, tokens)
            shares.append(resized(share, tokens, counted, planned))
            errors.append(error)
    if not shares:
        return None
    return BatchShare(
        share=math.fsum(shares) / len(shares),
        error=math.fsum(errors) / len(errors),  # all are of the same text
        at_most=batch > counted_tokens // _PART,
    )


def _distinct_share(cache: CacheHits, tokens: int) -> tuple[float, float]:
    """Return the share of `tokens` look-ups that are distinct rows, and its standard error.

    Caches smaller than the smallest one that was measured are read in two ways, which differ only
    there: on a line to a cache of no rows, which misses always, and on the line through the two
    smallest caches, in log rows. The result is their mean. The error adds up half their difference,
    what leaving out every second cache changes, the largest error of a hit rate, and `_READING`.
    """
    sizes = np.log1p(np.array(cache.cache_rows, dtype=np.float64))
    misses = 1.0 - np.array(cache.hit_rate, dtype=np.float64)
    grid = np.linspace(0.0, float(sizes[-1]), _STEPS)
    to_none = np.interp(grid, np.append(0.0, sizes), np.append(1.0, misses))
    fewer = slice((len(sizes) + 1) % 2, None, 2)  # the last one stays
    coarse = np.interp(grid, np.append(0.0, sizes[fewer]), np.append(1.0, misses[fewer]))
    slope = (misses[1] - misses[0]) / (sizes[1] - sizes[0]) if len(sizes) > 1 else 0.0
    ahead = np.clip(misses[0] + slope * (grid - sizes[0]), 0.0, 1.0)
    ahead = np.where(grid < sizes[0], ahead, to_none)
    one, two, three = (_distinct(grid, each, tokens) / tokens for each in (to_none, ahead, coarse))
    share = (one + two) / 2.0
    smaller = max(1.0 - share * tokens / math.expm1(float(sizes[0])), 0.0)
    reading = _READING[0] + _READING[1] * smaller
    return share, math.hypot((one - two) / 2.0, one - three, max(cache.errors), reading)


def _distinct(grid: NDArray[np.float64], misses: NDArray[np.float64], tokens: int) -> float:
    """Return s(T) at T = `tokens`: T is the integral of 1 / miss over the rows."""
    rows = np.expm1(grid)
    between = np.maximum((misses[1:] + misses[:-1]) / 2.0, 1e-9)
    steps = np.concatenate([[0.0], np.cumsum(np.diff(rows) / between)])
    return min(float(np.interp(tokens, steps, rows)), float(tokens))


def resized(share: float, tokens: int, counted: float, planned: float) -> float:
    """Return the share of `tokens` look-ups that are distinct rows with `planned` rows instead.

    As an ideal hash fills rows: u n-grams occupy m (1 - e^(-u/m)) of m rows.
    """
    met = share * tokens / counted
    ngrams = float(tokens)
    if met < 1.0:
        ngrams = min(-counted * math.log1p(-met), ngrams)
    return min(-planned * math.expm1(-ngrams / planned) / tokens, 1.0)

"""How much rows changed, in one byte a row, and which of them stand out from the others.

A level is EQUAL, WITHIN the codec's error, or from LEAST on the binary logarithm of the norm of a
row's difference, in eighths. So the memory of a comparison is one byte a row at most: pages of the
array in which no row changed are never touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EQUAL, WITHIN, LEAST, LEVELS = 0, 1, 2, 256
_PER_OCTAVE = 8
_LOWEST = -20  # the binary logarithm of the norm of the level LEAST
_MARGIN = math.sqrt(2.0)  # times the gaps that are there by chance
_STRAY = 50  # for so many rows on the smaller side, one may lie in the gap


def levels_of(norms: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return uint8[n]: the levels of differences with norms [n], all of them above zero."""
    logs = np.log2(np.maximum(norms, np.finfo(np.float64).tiny))
    levels = np.floor((logs - _LOWEST) * _PER_OCTAVE) + LEAST
    found: NDArray[np.uint8] = np.clip(levels, LEAST, LEVELS - 1).astype(np.uint8)
    return found


def norm_of(level: int) -> float:
    """Return the smallest norm of a difference that has a level."""
    return float(2.0 ** ((level - LEAST) / _PER_OCTAVE + _LOWEST))


def standing_out(counts: NDArray[np.int64], least: int) -> int | None:
    """Return the lowest level of the rows that changed far more than the others; None for no such.

    `counts` int64[LEVELS]: rows by level; `least`: the rows that an n-gram has. There must be a gap
    between both groups in which (nearly) no row lies, and `least` rows on each side of it. Of
    several, the one that is widest compared with what it must be is taken.
    """
    changed = counts.copy()
    changed[:LEAST] = 0
    sums = np.concatenate([[0], np.cumsum(changed)])
    total = int(sums[-1])
    best, widest = (0, 0), 0.0
    for begin in range(LEAST + 1, LEVELS):
        below = int(sums[begin])
        if below < least or not changed[begin - 1]:  # a gap begins behind a row
            continue
        for end in range(begin + 1, LEVELS):
            above, inside = total - int(sums[end]), int(sums[end] - sums[begin])
            if above < least or inside > min(above, below) // _STRAY:
                break
            width = (end - begin) / _needed(above, below, least)
            if changed[end] and width >= max(widest, 1.0):
                best, widest = (begin, end), width
    if best == (0, 0):
        return None
    # The few rows in the gap go with those that they are near.
    used = np.flatnonzero(changed[best[0] - 1 : best[1] + 1]) + best[0] - 1
    return int(used[np.argmax(np.diff(used)) + 1])


def _needed(above: int, below: int, least: int) -> float:
    """Return how many levels wide a gap must be, with rows `above` and `below` it.

    A training moves the rows of frequent n-grams most. The m-th most frequent n-gram of a text
    occurs about 1 + 1/m times as often as the next (Zipf), so above its rows there are such gaps by
    chance. Few edited n-grams need a wide one, many a narrow one. Where most rows lie above, they
    are no exception, and the gap must be the widest.
    """
    ngrams = above / least if above <= below else 1.0
    return _PER_OCTAVE * math.log2(_MARGIN * (1.0 + 1.0 / ngrams))


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """How the change is spread over the changed rows.

    The change of a row is the square of the norm of its difference. `half_rows`: the most changed
    rows that have half of all change; `shares`: (share of the changed rows, the most changed first,
    share of the change), ascending.
    """

    half_rows: int
    shares: tuple[tuple[float, float], ...]


def concentration(counts: NDArray[np.int64], change: NDArray[np.float64]) -> Concentration | None:
    """Return how the change is spread; None where no row changed.

    `counts` int64[LEVELS]: rows by level; `change` float64[LEVELS]: the sum of the squared norms of
    their differences. Within a level rows count as equal.
    """
    used = np.flatnonzero(counts[LEAST:])[::-1] + LEAST
    rows, sums = np.cumsum(counts[used]), np.cumsum(change[used])
    if not len(used) or not sums[-1] > 0:
        return None
    points_x = np.concatenate([[0.0], rows / rows[-1]])
    points_y = np.concatenate([[0.0], sums / sums[-1]])
    half = float(np.interp(0.5, points_y, points_x))
    pairs = zip(points_x.tolist(), points_y.tolist(), strict=True)
    return Concentration(half_rows=max(1, round(half * int(rows[-1]))), shares=tuple(pairs))

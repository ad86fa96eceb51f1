"""What an ideal hash fills, and whether a head differs from it.

How many rows n balls fill is distributed as a sum of independent yes-or-no variables (Vatutin and
Mikhailov, 1982), so Bennett's inequality bounds its tails, for few events as for many.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

Flag = Literal["above", "below"]
ALARM = 0.001  # the chance that any of the columns of an ideal hash is flagged, at most
_HALVINGS = 60


def ideal_occupied(rows: int, ngrams: float) -> float:
    """Return the expected occupied rows when `ngrams` fall on `rows` rows at random."""
    return -rows * math.expm1(ngrams * math.log1p(-1.0 / rows))


def occupied_variance(rows: int, ngrams: float) -> float:
    """Return the variance of the occupied rows: m e^-a (1 - (1 + a) e^-a), a = n/m.

    Source: Johnson and Kotz, "Urn Models and Their Application" (1977), section 6.2.
    """
    load = ngrams / rows
    empty = math.exp(-load)
    # 1 - (1 + a) e^-a, without the loss of digits where a is small
    return max(rows * empty * (-math.expm1(-load) - load * empty), 0.0)


def ideal_occupied_error(rows: int, ngrams: float, ngrams_error: float) -> float:
    """Return the standard error of the rows that `ngrams` n-grams, known to `ngrams_error`, occupy.

    The variance of the occupancy, and that of the n-grams times the slope e^-(n/m). At least one
    row: a few rows compared with an expectation of none say nothing.
    """
    by_ngrams = math.exp(-ngrams / rows) * ngrams_error
    return math.sqrt(max(occupied_variance(rows, ngrams) + by_ngrams**2, 1.0))


def ideal_shared(rows: int, ngrams: float) -> float:
    """Return the chance that some other of `ngrams` n-grams falls on a given one's row."""
    return -math.expm1(max(ngrams - 1.0, 0.0) * math.log1p(-1.0 / rows))


def rows_for(ngrams: float, share: float) -> float:
    """Return the rows on which `share` of `ngrams` n-grams share their row, at random."""
    return max(ngrams - 1.0, 0.0) / -math.log1p(-share)


def flag(
    occupied: int, rows: int, ngrams: float, ngrams_error: float, chance: float
) -> Flag | None:
    """Return on which side of an ideal hash `occupied` lies; None if it may be one.

    `ngrams` n-grams, known to a standard error of `ngrams_error`, fall on `rows` rows. An ideal
    hash is flagged with a chance of at most `chance`.
    """
    tail = chance / (4.0 if ngrams_error else 2.0)  # two sides, and two unknown numbers
    least, most = _ngrams_range(ngrams, ngrams_error, tail)
    if occupied > ideal_occupied(rows, most) + reach(occupied_variance(rows, most), tail):
        return "above"
    if occupied < ideal_occupied(rows, least) - reach(occupied_variance(rows, least), tail):
        return "below"
    return None


def reach(variance: float, chance: float) -> float:
    """Return the deviation that a sum of yes-or-no variables exceeds with at most `chance`.

    Solves v h(t / v) = -log(chance), h(u) = (1 + u) log(1 + u) - u. Source: Bennett, "Probability
    inequalities for the sum of independent random variables" (1962).
    """
    wanted = -math.log(chance)
    if variance < 1e-12:
        return 0.5  # nothing to deviate
    low, high = 0.0, wanted + math.sqrt(2.0 * variance * wanted)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        scaled = middle / variance
        if variance * ((1.0 + scaled) * math.log1p(scaled) - scaled) < wanted:
            low = middle
        else:
            high = middle
    return high


def _ngrams_range(ngrams: float, error: float, tail: float) -> tuple[float, float]:
    """Return the bounds of the number of n-grams, each exceeded with a chance of `tail`.

    The number over its estimate is a gamma variable over its mean, with as many degrees as the
    sample has hashes. By the cube-root rule of Wilson and Hilferty (1931).
    """
    if not error:
        return ngrams, ngrams
    degrees = (ngrams / error) ** 2
    deviations = NormalDist().inv_cdf(1.0 - tail) / (3.0 * math.sqrt(degrees))
    centre = 1.0 - 1.0 / (9.0 * degrees)
    least, most = (max(centre + side * deviations, 0.0) ** 3 for side in (-1.0, 1.0))
    return ngrams * least, ngrams * most

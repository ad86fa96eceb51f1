"""Estimates what a geometry makes of a corpus: occupancy, clean heads, hot rows.

The formulas are those of hash-stats (`stats.sampling.ideal`, `stats.statistics.clean_heads`).
A hot row is one that was hit. What is said of hot rows holds at the number of rows that was
counted: fewer rows a head need no more of them, more rows need more, but how many is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.sampling.ideal import ideal_occupied, ideal_occupied_error
from engram_cli.stats.statistics.clean_heads import ideal_clean
from engram_cli.stats.statistics.locality import HotRows, ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """About `distinct` n-grams of an order, with a standard error.

    `bound`: no more than that is known: there are at most so many.
    """

    order: int
    distinct: float
    error: float
    bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """An order of a layer: `occupied` of a head's rows, with its error, and clean heads.

    `clean`: of its heads an n-gram has on average so many for itself; `none_clean`, `all_clean`:
    the shares of n-grams with no such head, and with nothing but such heads.
    """

    order: int
    distinct: float
    distinct_error: float
    bound: bool
    rows_per_head: float
    occupied: float
    occupied_error: float
    clean: float
    none_clean: float
    all_clean: float


def expect(demand: Demand, moduli: Sequence[int]) -> Expectation:
    """What `demand` does to the heads of an order, which have `moduli` rows."""
    clean = ideal_clean(moduli, demand.distinct)
    occupied = [ideal_occupied(rows, demand.distinct) / rows for rows in moduli]
    errors = [ideal_occupied_error(rows, demand.distinct, demand.error) / rows for rows in moduli]
    return Expectation(
        order=demand.order,
        distinct=demand.distinct,
        distinct_error=demand.error,
        bound=demand.bound,
        rows_per_head=math.fsum(moduli) / len(moduli),
        occupied=math.fsum(occupied) / len(moduli),
        occupied_error=max(errors),
        clean=math.fsum(heads * share for heads, share in enumerate(clean)),
        none_clean=clean[0],
        all_clean=clean[-1],
    )


def hot_rows(hits: NDArray[np.uint32], hit_rate: float) -> int:
    """How many of the rows catch `hit_rate` of the counted look-ups, the hottest first."""
    ranking = ranked(hits)
    caught = np.cumsum(ranking.values.astype(np.float64) * ranking.rows)
    if len(caught) == 0 or caught[-1] == 0:
        return 0
    rows = np.concatenate([[0.0], np.cumsum(ranking.rows)])
    shares = np.concatenate([[0.0], caught / caught[-1]])
    return math.ceil(float(np.interp(hit_rate, shares, rows)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """What the used rows of an order caught of the look-ups held out.

    `rows`: shares of all rows, the hottest first, from 0 to all that were used; `caught`: the
    shares of look-ups. The last of them is a bound from below unless `exact`.
    """

    rows: NDArray[np.float64]
    caught: NDArray[np.float64]
    exact: bool

    @property
    def reach(self) -> float:
        """The share of look-ups that all used rows catch."""
        return float(self.caught[-1])

    def share(self, hit_rate: float) -> float | None:
        """The share of all rows that catches `hit_rate`; None where the used ones do not."""
        if hit_rate > self.caught[-1]:
            return None
        return float(np.interp(hit_rate, self.caught, self.rows))


def held_out(entry: HotRows, occupied: float) -> HeldOut | None:
    """The curve of an order of the section `locality`, "hot"; None where nothing was held out.

    `occupied`: the share of its rows with a hit. Rows without one catch evenly, so behind it the
    curve is a line up to all rows, and what all used rows catch follows from any point on it.
    Raises ValueError or IndexError for a damaged entry.
    """
    if not entry.held_out:
        return None
    shares = np.array([0.0, *entry.rows_share], dtype=np.float64)
    caught = np.maximum.accumulate(np.array([0.0, *entry.held_out], dtype=np.float64))
    if len(shares) != len(caught) or not (np.isfinite(shares).all() and np.isfinite(caught).all()):
        raise ValueError("the shares of hot rows do not fit together")
    if not 0.0 < occupied <= 1.0:
        raise ValueError(f"{occupied} of the rows are used")
    on_line = np.flatnonzero((shares >= occupied) & (shares < 1.0))
    point = int(on_line[0] if len(on_line) else np.flatnonzero(shares < 1.0)[-1])
    # Without a point on the line the last before it: the curve only bends down, so its slope from
    # there is a bound from above.
    slope = min((1.0 - float(caught[point])) / (1.0 - float(shares[point])), 1.0)
    inside = shares < occupied
    whole = max(1.0 - slope * (1.0 - occupied), float(caught[inside][-1]))
    return HeldOut(
        rows=np.append(shares[inside], occupied),
        caught=np.append(caught[inside], whole),
        exact=len(on_line) > 0,
    )

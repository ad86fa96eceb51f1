"""What a geometry makes of a corpus: distinct n-grams and rows in, occupancy and clean heads out.

The formulas are those that hash-stats holds its counts against (`stats.collisions`, `stats.heads`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.collisions import ideal_occupied, ideal_occupied_error
from engram_cli.stats.heads import ideal_clean
from engram_cli.stats.locality.hot import ranked


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


def held_out_share(entry: Mapping[str, Any], hit_rate: float) -> float | None:
    """The share of an order's rows that catches `hit_rate` of the look-ups that were held out.

    `entry`: of the section `locality`, "hot". None where nothing was held out.
    """
    caught = entry.get("held_out")
    if not caught:
        return None
    shares = np.array([0.0, *entry["rows_share"]], dtype=np.float64)
    return float(np.interp(hit_rate, np.maximum.accumulate([0.0, *caught]), shares))

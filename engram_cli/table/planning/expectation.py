"""What a geometry makes of a corpus: distinct n-grams and rows in, occupancy and clean heads out.

The formulas are those that hash-stats holds its counts against (`stats.collisions`, `stats.heads`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engram_cli.stats.clean_heads import ideal_clean
from engram_cli.stats.ideal import ideal_occupied, ideal_occupied_error


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

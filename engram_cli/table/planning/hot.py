"""Which share of the rows is hot: row hits and held-out look-ups in, hot rows of any head out.

A hot row is one that was hit. Of the look-ups held out, some are of n-grams never counted: they
catch a used row by chance alone, as often as rows are used, and so less often in larger heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.locality.hot import ranked


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

    `used`: shares of the used rows, the hottest first, from 0 to 1; `known`: the share of look-ups
    that they catch because the n-gram was counted. `unseen`: the share of look-ups of n-grams that
    were not; no more than a bound from above unless `exact`.
    """

    used: NDArray[np.float64]
    known: NDArray[np.float64]
    unseen: float
    exact: bool

    def reach(self, occupied: float) -> float:
        """The share of look-ups that all used rows catch, where they are `occupied` of the rows.

        From below unless `exact`.
        """
        return float(self._caught(occupied)[-1])

    def share(self, hit_rate: float, occupied: float) -> float | None:
        """The share of the used rows that catches `hit_rate`; None where they do not reach it."""
        caught = self._caught(occupied)
        if hit_rate > caught[-1]:
            return None
        return float(np.interp(hit_rate, caught, self.used))

    def _caught(self, occupied: float) -> NDArray[np.float64]:
        caught = np.maximum.accumulate(self.known + self.unseen * self.used * occupied)
        return np.minimum(caught, 1.0)


def held_out(entry: Mapping[str, Any], occupied: float) -> HeldOut | None:
    """The curve of an order of the section `locality`, "hot"; None where nothing was held out.

    `occupied`: the share of its rows with a hit. Rows without one catch evenly, so behind it the
    curve is a line up to all rows, and where it begins follows from any point on it. Raises
    KeyError, TypeError, ValueError or IndexError for a damaged entry.
    """
    if not entry.get("held_out"):
        return None
    shares = np.array([0.0, *entry["rows_share"]], dtype=np.float64)
    caught = np.maximum.accumulate(np.array([0.0, *entry["held_out"]], dtype=np.float64))
    if len(shares) != len(caught) or not (np.isfinite(shares).all() and np.isfinite(caught).all()):
        raise ValueError("the shares of hot rows do not fit together")
    if not 0.0 < occupied <= 1.0:
        raise ValueError(f"{occupied} of the rows are used")
    on_line = np.flatnonzero((shares >= occupied) & (shares < 1.0))
    point = int(on_line[0] if len(on_line) else np.flatnonzero(shares < 1.0)[-1])
    # Without a point on the line the last before it: the curve only bends down, so its slope from
    # there is a bound from above.
    unseen = min((1.0 - float(caught[point])) / (1.0 - float(shares[point])), 1.0)
    inside = shares < occupied
    whole = 1.0 - unseen * (1.0 - occupied)
    used = np.append(shares[inside] / occupied, 1.0)
    known = np.append(caught[inside], whole) - unseen * used * occupied
    return HeldOut(used=used, known=known, unseen=unseen, exact=len(on_line) > 0)

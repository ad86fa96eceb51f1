"""Computes what a corpus does to a table of this size, and which size would share less.

Everything follows from the results of statistics. Measured: the rows in use, the look-ups that
meet a shared row, what hot rows serve. Computed: sharing at other sizes, that of a random hash
with as many distinct n-grams, which is the expectation by n-gram and by use alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_cli.charts import grouped
from engram_cli.numbers import mean
from engram_cli.stats.statistic import Results
from engram_cli.stats.statistics.clean_heads import CLEAN_HEADS
from engram_cli.stats.statistics.collisions import COLUMNS, ColumnStats
from engram_cli.stats.statistics.growth_view import GROWTH
from engram_cli.stats.statistics.locality import LOCALITY, HotRows
from engram_cli.stats.statistics.orders import ORDERS
from engram_cli.stats.statistics.row_hits import ROW_HITS, RowHits

TARGETS = (0.5, 0.1)  # shares of look-ups that meet a shared row
CACHES = (0.01, 0.1)  # shares of the rows that a cache keeps
_AHEAD = 10  # times the corpus
_HALVINGS = 60
_ROUNDING = 0.02  # three digits, and the search of primes


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSize:
    """One order: `rows` per head, the mean of its columns, and its `distinct` n-grams."""

    order: int
    rows: float
    distinct: float
    error: float

    def sharing(self, factor: float) -> float:
        """Return the share of look-ups that share their row if heads had `factor` times the rows.

        That of a random hash: the chance that one of the other n-grams falls on the same row.
        """
        others = max(self.distinct - 1.0, 0.0)
        return -math.expm1(others * math.log1p(-1.0 / max(self.rows * factor, 2.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The size at which `share` of the look-ups meet a shared row.

    `factor`: times today's rows; `rows`: rows per head of each order, rounded up to three digits;
    `error`: the relative standard error of both.
    """

    share: float
    factor: float
    rows: tuple[int, ...]
    error: float

    @property
    def is_here(self) -> bool:
        """Whether this table has that size, but for the rounding of `rows`."""
        return abs(self.factor - 1.0) <= _ROUNDING

    @property
    def option(self) -> str:
        """The value of --rows-per-head: one number where all orders have it."""
        return ",".join(map(str, self.rows if len(set(self.rows)) > 1 else self.rows[:1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What the hottest `rows_share` of the rows serve: between `low` and `high` of look-ups.

    `source`: "held out" or "counted" tokens, or "bounds" from how many rows have how many hits.
    """

    rows_share: float
    low: float
    high: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LargerCorpus:
    """The share of look-ups that meet a shared row in a corpus `factor` times as large.

    `error`: its standard error.
    """

    factor: int
    shared: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a table of this size; shares are means over all heads.

    `used`: of the rows, at least once; `shared`: of look-ups, between `least_shared` and
    `most_shared` in single heads; `ideal`: the same for a random hash. `none_clean`: of look-ups,
    no head holds their n-gram alone, in the worst order and layer; None where unknown.
    `larger_corpus`: None where the corpus predicts nothing, and `growth_measured` says whether
    growth was measured.
    """

    orders: tuple[OrderSize, ...]
    layers: int
    heads: int
    total_rows: int
    used: float
    shared: float
    least_shared: float
    most_shared: float
    ideal: float
    targets: tuple[Target, ...]
    caught: tuple[Caught, ...]
    none_clean: float | None
    larger_corpus: LargerCorpus | None
    growth_measured: bool

    def sharing(self, factor: float) -> float:
        """Return the mean over orders of `OrderSize.sharing`."""
        return _sharing(self.orders, factor)

    @property
    def even(self) -> bool:
        """Whether all orders have the same rows per head."""
        return _even(self.orders, self.heads)


def verdict_of(results: Results) -> Verdict | None:
    """Return the verdict on a counted corpus; None without the results it rests on."""
    columns, found = results.listed(COLUMNS), results.listed(ORDERS)
    by_order = grouped(columns, lambda column: column.order)
    if not columns or not found or any(entry.order not in by_order for entry in found):
        return None
    orders = tuple(
        OrderSize(
            order=entry.order,
            rows=mean(float(each.rows) for each in by_order[entry.order]),
            distinct=entry.distinct,
            error=entry.distinct_error / max(entry.distinct, 1.0),
        )
        for entry in found
    )
    layers = len({each.layer for each in columns})
    shared = [each.shared_occurrences for each in columns]
    total = sum(each.rows for each in columns)
    heads = len(columns) // max(layers * len(orders), 1)
    clean = [entry.occurrences[0] for entry in results.listed(CLEAN_HEADS)]
    return Verdict(
        orders=orders,
        layers=layers,
        heads=heads,
        total_rows=total,
        used=sum(each.occupied for each in columns) / total,
        shared=mean(shared),
        least_shared=min(shared),
        most_shared=max(shared),
        ideal=mean(each.ideal_shared for each in columns),
        targets=tuple(
            target for share in TARGETS if (target := _target(orders, heads, share)) is not None
        ),
        caught=tuple(_caught(results, columns)),
        none_clean=max(clean, default=None),
        larger_corpus=_larger_corpus(results, orders),
        growth_measured=results.get(GROWTH) is not None,
    )


def _sharing(orders: Sequence[OrderSize], factor: float) -> float:
    return mean(order.sharing(factor) for order in orders)


def _even(orders: Sequence[OrderSize], heads: int) -> bool:
    """Return whether the rows per head are equal, but for the search of primes.

    Each head takes the next prime, and primes near n are ln(n) apart on average.
    """
    rows = [order.rows for order in orders]
    primes = (len(orders) - 1) * heads * math.log(max(rows)) * 1.5
    return max(rows) - min(rows) <= max(0.01 * min(rows), min(primes, 0.2 * min(rows)))


def _target(orders: Sequence[OrderSize], heads: int, share: float) -> Target | None:
    """Return the size for a share; None where n-grams are too few to share that much."""
    low = min(2.0 / order.rows for order in orders)
    high = max(order.distinct / order.rows for order in orders) / -math.log1p(-share) * 4.0
    if high <= low or _sharing(orders, low) <= share:
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _sharing(orders, middle) > share else (low, middle)
    rows = [order.rows for order in orders]
    close = max(rows) <= 1.01 * min(rows)
    sizes = [min(rows) if close else mean(rows)] * len(rows) if _even(orders, heads) else rows
    return Target(
        share=share,
        factor=high,
        rows=tuple(_rounded_up(size * high) for size in sizes),
        error=max(order.error for order in orders),
    )


def _rounded_up(value: float) -> int:
    """Return a whole number of three digits and zeros, not below `value`."""
    step: int = 10 ** max(math.floor(math.log10(max(value, 1.0))) - 2, 0)
    return math.ceil(value / step) * step


def _larger_corpus(results: Results, orders: Sequence[OrderSize]) -> LargerCorpus | None:
    """Return the sharing of a corpus ten times as large at this size: that of a random hash."""
    curves = {entry.order: entry for entry in results.listed(GROWTH)}
    shares, errors = [], []
    for order in orders:
        points = curves[order.order].extrapolated if order.order in curves else ()
        point = next((p for p in points if p.factor == _AHEAD), None)
        if point is None:
            return None
        later, more = (
            OrderSize(order=order.order, rows=order.rows, distinct=distinct, error=0.0).sharing(1.0)
            for distinct in (point.distinct, point.distinct + point.error)
        )
        shares.append(later)
        errors.append(more - later)
    return LargerCorpus(factor=_AHEAD, shared=mean(shares), error=mean(errors))


def _caught(results: Results, columns: Sequence[ColumnStats]) -> Iterable[Caught]:
    """Yield what caches of some shares of the rows serve, means over layers and orders."""
    locality = results.get(LOCALITY)
    hot = () if locality is None else locality.hot
    for share in CACHES:
        if hot and share in hot[0].rows_share:
            held = all(entry.held_out is not None for entry in hot)
            served = mean(_served(entry, share, held) for entry in hot)
            source = "held out" if held else "counted"
            yield Caught(rows_share=share, low=served, high=served, source=source)
            continue
        bounds = [_bounds(entry, share, columns, results) for entry in results.listed(ROW_HITS)]
        if bounds:
            lows, highs = zip(*bounds, strict=True)
            yield Caught(rows_share=share, low=mean(lows), high=mean(highs), source="bounds")


def _served(entry: HotRows, share: float, held: bool) -> float:
    values = entry.held_out if held and entry.held_out is not None else entry.counted
    return values[entry.rows_share.index(share)]


def _bounds(
    entry: RowHits, share: float, columns: Sequence[ColumnStats], results: Results
) -> tuple[float, float]:
    """Return between which shares of look-ups the hottest rows of an order serve.

    All that is known of a row is the bin of its hits, [2^i, 2^(i+1)); all hits together are the
    tokens times the heads.
    """
    own = [each for each in columns if (each.layer, each.order) == (entry.layer, entry.order)]
    total = max(results.tokens * len(own), 1)
    kept = share * sum(entry.rows)
    top_low = top_high = rest_low = rest_high = 0.0
    for low, rows in zip(reversed(entry.bins), reversed(entry.rows), strict=True):
        high = max(2 * low - 1, 0)
        top = min(float(rows), kept)
        kept -= top
        top_low, top_high = top_low + top * low, top_high + top * high
        rest_low, rest_high = rest_low + (rows - top) * low, rest_high + (rows - top) * high
    low_share = max(top_low / total, 1.0 - rest_high / total, 0.0)
    return low_share, max(min(top_high / total, 1.0 - rest_low / total, 1.0), low_share)

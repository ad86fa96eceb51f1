"""The n-grams of each order, and how far its heads lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from engram_cli.charts import grouped
from engram_cli.numbers import mean
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.ideal import rows_for
from engram_cli.stats.statistic import Results, Statistic
from engram_cli.stats.statistics.collisions import COLUMNS, ColumnStats
from engram_cli.view import Cell, Column, Estimate, Table, View, counts, percents

_SHARING = (0.5, 0.1)  # shares of n-grams that may share a row


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStats:
    """The n-grams of one order: `windows` occurrences of about `distinct` n-grams."""

    order: int
    windows: int
    distinct: float
    distinct_error: float
    exact: bool
    sampled: int


def order_stats(samples: Sequence[NgramSample], tokens: int) -> tuple[OrderStats, ...]:
    """Return the results of each order; `samples` are of a corpus of `tokens` tokens."""
    return tuple(
        OrderStats(
            order=sample.order,
            windows=tokens,
            distinct=sample.distinct,
            distinct_error=sample.distinct_error,
            exact=sample.exact,
            sampled=len(sample.hashes),
        )
        for sample in samples
    )


def view(orders: tuple[OrderStats, ...], results: Results) -> Iterable[View]:
    """Draw one line for each order: its n-grams, and what its heads have in common."""
    heads = grouped(results.listed(COLUMNS), lambda column: column.order)
    ngrams = tuple(_ngrams(entry, heads.get(entry.order, [])) for entry in orders)
    names = (
        *counts("order", "distinct n-grams"),
        Column("times each", "decimal", 1),
        Column("rows per head", "brief"),
        *(Column(f"rows, {share:.0%} share", "brief") for share in _SHARING),
    )
    parts = [Table("N-grams by order", names, ngrams)]
    if heads:
        parts.append(_spread(heads))
    yield View(
        name="orders",
        title="N-grams and heads by order",
        lead="A row is shared when more than one n-gram falls on it. The ideal is what a random "
        "hash would give for as many distinct n-grams and as many rows: a good layout matches it, "
        "only more rows beat it.",
        parts=tuple(parts),
    )


def _ngrams(entry: OrderStats, heads: Sequence[ColumnStats]) -> tuple[Cell, ...]:
    return (
        entry.order,
        Estimate(entry.distinct, entry.distinct_error),
        entry.windows / max(entry.distinct, 1.0),
        mean(float(each.rows) for each in heads) if heads else None,
        *(rows_for(entry.distinct, share) for share in _SHARING),
    )


def _spread(heads: Mapping[int, Sequence[ColumnStats]]) -> Table:
    """Draw what the heads of an order have in common, and how far they lie apart."""
    spread = ("least", "median", "most", "ideal")
    columns = (
        *counts("order", "heads"),
        *percents(*(f"rows used, {name}" for name in spread), digits=2),
        *counts("rows used, heads outside"),
        *percents(*(f"look-ups sharing, {name}" for name in spread), digits=1),
    )
    rows = []
    for order, own in heads.items():
        used = [each.occupied / each.rows for each in own]
        shared = [each.shared_occurrences for each in own]
        rows.append(
            (
                *(order, len(own)),
                *(min(used), median(used), max(used)),
                mean(each.ideal_occupied / each.rows for each in own),
                sum(1 for each in own if each.flag),
                *(min(shared), median(shared), max(shared)),
                mean(each.ideal_shared for each in own),
            )
        )
    note = (
        "heads outside: those whose rows used are beyond the interval of a random hash; --verbose "
        "lists all heads"
    )
    return Table("Heads by order", columns, tuple(rows), note=note)


ORDERS = Statistic(
    key="orders",
    kind=tuple[OrderStats, ...],
    compute=lambda counted: order_stats(counted.samples, counted.counts.tokens),
    view=view,
)

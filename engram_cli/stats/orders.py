"""The n-grams of each order, and the results that matter first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_cli.numbers import brief, count, mean, percent
from engram_cli.stats.collisions import COLUMNS, ColumnStats
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.statistic import Results, Statistic
from engram_cli.view import Cell, Column, Estimate, Table, Tile, Tiles, View, grouped


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
    """Draw key numbers, and one line of a table for each order."""
    if not orders:
        return
    columns = results.listed(COLUMNS)
    names = (
        Column(name="order"),
        Column(name="distinct n-grams"),
        Column(name="times each", kind="decimal", digits=1),
        *(
            Column(name=name, kind="percent")
            for name in ("rows used", "n-grams sharing", "ideal", "by use")
        ),
    )
    of_order = grouped(columns, lambda column: column.order)
    rows = tuple(_line(entry, of_order.get(entry.order, [])) for entry in orders)
    yield View(
        name="overview",
        title="At a glance",
        lead="A row is shared when more than one n-gram falls on it. The ideal is what a random "
        "hash would give for as many distinct n-grams and as many rows: a good layout matches it, "
        "only more rows beat it.",
        parts=(
            _tiles(columns, results),
            Table(title="N-grams by order, mean of all heads and layers", columns=names, rows=rows),
        ),
    )


def _line(entry: OrderStats, own: Sequence[ColumnStats]) -> tuple[Cell, ...]:
    shares = (
        [each.occupied / each.rows for each in own],
        [each.shared for each in own],
        [each.ideal_shared for each in own],
        [each.shared_occurrences for each in own],
    )
    return (
        entry.order,
        Estimate(value=entry.distinct, error=entry.distinct_error),
        entry.windows / max(entry.distinct, 1.0),
        *(mean(values) if values else None for values in shares),
    )


def _tiles(columns: Sequence[ColumnStats], results: Results) -> Tiles:
    tokens = Tile(
        value=brief(results.tokens), what="tokens", beside=f"{count(results.documents)} documents"
    )
    if not columns:
        return Tiles(entries=(tokens,))
    rows = sum(each.rows for each in columns)
    layers = len({each.layer for each in columns})
    used = sum(each.occupied for each in columns) / rows
    return Tiles(
        entries=(
            tokens,
            Tile(
                value=brief(rows),
                what="rows",
                beside=f"{layers} layer{'s' if layers > 1 else ''}, {len(columns)} columns",
            ),
            Tile(value=percent(used), what="of the rows are used", beside="at least once"),
            Tile(
                value=percent(mean(each.shared_occurrences for each in columns)),
                what="of look-ups meet a shared row",
                beside="mean of all heads",
            ),
        )
    )


ORDERS = Statistic(
    key="orders",
    kind=tuple[OrderStats, ...],
    compute=lambda counted: order_stats(counted.samples, counted.counts.tokens),
    view=view,
)

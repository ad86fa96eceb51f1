"""The n-grams of each order, and the results that matter first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from engram_cli.numbers import brief, count, mean, percent
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.statistic import Results, Statistic
from engram_cli.stats.statistics.collisions import COLUMNS, ColumnStats
from engram_cli.view import (
    Cell,
    Column,
    Estimate,
    Table,
    Tiles,
    View,
    counts,
    grouped,
    percents,
)


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
    columns = results.listed(COLUMNS)
    heads = grouped(columns, lambda column: column.order)
    rows = tuple(_line(entry, heads.get(entry.order, [])) for entry in orders)
    names = (
        *counts("order", "distinct n-grams"),
        Column("times each", "decimal", 1),
        *percents("rows used", "n-grams sharing", "ideal", "by use"),
    )
    yield View(
        name="overview",
        title="At a glance",
        lead="A row is shared when more than one n-gram falls on it. The ideal is what a random "
        "hash would give for as many distinct n-grams and as many rows: a good layout matches it, "
        "only more rows beat it.",
        parts=(
            Tiles(tuple(_tiles(columns, results))),
            Table("N-grams by order, mean of all heads and layers", names, rows),
        ),
    )


def _line(entry: OrderStats, heads: Sequence[ColumnStats]) -> tuple[Cell, ...]:
    shares = [
        (each.occupied / each.rows, each.shared, each.ideal_shared, each.shared_occurrences)
        for each in heads
    ]
    return (
        entry.order,
        Estimate(entry.distinct, entry.distinct_error),
        entry.windows / max(entry.distinct, 1.0),
        *(map(mean, zip(*shares, strict=True)) if shares else (None,) * 4),
    )


def _tiles(columns: Sequence[ColumnStats], results: Results) -> Iterator[tuple[str, str, str]]:
    yield brief(results.tokens), "tokens", f"{count(results.documents)} documents"
    if columns:
        layers = len({each.layer for each in columns})
        rows = sum(each.rows for each in columns)
        used = sum(each.occupied for each in columns) / rows
        shared = mean(each.shared_occurrences for each in columns)
        plural = "s" if layers > 1 else ""
        yield brief(rows), "rows", f"{layers} layer{plural}, {len(columns)} columns"
        yield percent(used), "of the rows are used", "at least once by this corpus"
        yield percent(shared), "of look-ups meet a shared row", "mean of all heads"


ORDERS = Statistic(
    key="orders",
    kind=tuple[OrderStats, ...],
    compute=lambda counted: order_stats(counted.samples, counted.counts.tokens),
    view=view,
)

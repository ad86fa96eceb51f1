"""What vocabulary compression is worth: the typed result, and its view beside the layout's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_cli.numbers import mean
from engram_cli.stats.collisions import COLUMNS, ColumnStats
from engram_cli.stats.compare import Uncompressed
from engram_cli.stats.orders import ORDERS, OrderStats
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.view import (
    Axis,
    Bar,
    BarChart,
    Cell,
    Estimate,
    Group,
    Row,
    Slot,
    Table,
    View,
    counts,
    grouped,
    order_color,
    order_name,
    percents,
    share_axis,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UncompressedResult:
    """The results of raw token ids, as those of the layout."""

    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]


def view(found: UncompressedResult, results: Results) -> Iterable[View]:
    """Draw distinct n-grams and sharing with and without compression, by order."""
    raw = grouped(found.columns, lambda column: column.order)
    own = grouped(results.listed(COLUMNS), lambda column: column.order)
    rows: list[tuple[Cell, ...]] = []
    ngrams, sharing = [], []
    if not (orders := results.listed(ORDERS)):
        return
    for old, new in zip(found.orders, orders, strict=True):
        before, after = raw.get(new.order, []), own.get(new.order, [])
        shares = mean(each.shared for each in before), mean(each.shared for each in after)
        distinct = Estimate(old.distinct, old.distinct_error)
        fewer = 1.0 - new.distinct / max(old.distinct, 1.0)
        rows.append(
            (
                *(new.order, distinct, Estimate(new.distinct, new.distinct_error), fewer),
                *(*shares, _by_use(before), _by_use(after)),
            )
        )
        ngrams.append(_slot(new.order, old.distinct, new.distinct))
        sharing.append(_slot(new.order, *shares))
    names = ("fewer", "sharing, raw ids", "compressed", "by use, raw ids", "compressed")
    columns = (*counts("order", "distinct, raw ids", "compressed"), *percents(*names, digits=1))
    charts = (
        BarChart(
            name="worth-ngrams",
            title="Distinct n-grams",
            description="Two bars for each order: raw token ids, and the compressed vocabulary.",
            y=Axis("distinct n-grams", low=0.0),
            groups=(Group("", tuple(ngrams)),),
        ),
        BarChart(
            name="worth-sharing",
            title="N-grams that share their row",
            description="Two bars for each order: raw token ids, and the compressed vocabulary.",
            note="mean of all heads",
            y=share_axis("n-grams that share their row"),
            groups=(Group("", tuple(sharing)),),
        ),
    )
    yield View(
        name="compression",
        title="What vocabulary compression is worth",
        lead="Compression gives look-alike tokens one id, so that spellings of the same n-gram "
        "meet on one row: fewer distinct n-grams, fewer n-grams that share a row.",
        parts=(Row(charts), Table("Effect of compressing the vocabulary", columns, tuple(rows))),
    )


def _slot(order: int, before: float, after: float) -> Slot:
    color = order_color(order)
    without = Bar("raw token ids", color, before, light=True)
    return Slot(order_name(order), (without, Bar("compressed vocabulary", color, after)))


def _by_use(columns: Sequence[ColumnStats]) -> Estimate:
    """Return the mean share and the mean error of columns, which use the same sample."""
    shares = [(each.shared_occurrences, each.shared_occurrences_error) for each in columns]
    return Estimate(mean(share for share, _ in shares), mean(error for _, error in shares))


def _collect(plan: CollectorPlan) -> Uncompressed | None:
    if not plan.options.compare_uncompressed:
        return None
    return Uncompressed(plan.layout, plan.sample_size, plan.exact)


UNCOMPRESSED = Statistic(
    key="uncompressed",
    kind=UncompressedResult,
    view=view,
    collect=_collect,
    blank=Uncompressed.blank_for,
)

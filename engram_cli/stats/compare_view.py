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
    Column,
    Estimate,
    Group,
    Row,
    Slot,
    Table,
    View,
    grouped,
    order_color,
    order_name,
    share_axis,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UncompressedResult:
    """The results of raw token ids, as those of the layout."""

    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]


def view(found: UncompressedResult, results: Results) -> Iterable[View]:
    """Draw distinct n-grams and sharing with and without compression, by order."""
    before = {entry.order: entry for entry in found.orders}
    raw = grouped(found.columns, lambda column: column.order)
    own = grouped(results.listed(COLUMNS), lambda column: column.order)
    rows: list[tuple[Cell, ...]] = []
    ngrams, sharing = [], []
    for entry in results.listed(ORDERS):
        order = entry.order
        if order not in before:
            continue
        old, theirs, ours = before[order], raw.get(order, []), own.get(order, [])
        shares = mean(each.shared for each in theirs), mean(each.shared for each in ours)
        rows.append(
            (
                order,
                Estimate(value=old.distinct, error=old.distinct_error),
                Estimate(value=entry.distinct, error=entry.distinct_error),
                1.0 - entry.distinct / max(old.distinct, 1.0),
                *(*shares, _by_use(theirs), _by_use(ours)),
            )
        )
        ngrams.append(_slot(order, old.distinct, entry.distinct))
        sharing.append(_slot(order, *shares))
    if not rows:
        return
    names = ("fewer", "sharing, raw ids", "compressed", "by use, raw ids", "compressed")
    columns = (
        *(Column(name=name) for name in ("order", "distinct, raw ids", "compressed")),
        *(Column(name=name, kind="percent", digits=1) for name in names),
    )
    charts = (
        BarChart(
            name="worth-ngrams",
            title="Distinct n-grams",
            description="Two bars for each order: raw token ids, and the compressed vocabulary.",
            y=Axis(title="distinct n-grams", low=0.0),
            groups=(Group(slots=tuple(ngrams)),),
        ),
        BarChart(
            name="worth-sharing",
            title="N-grams that share their row",
            description="Two bars for each order: raw token ids, and the compressed vocabulary.",
            note="mean of all heads",
            y=share_axis("n-grams that share their row"),
            groups=(Group(slots=tuple(sharing)),),
        ),
    )
    yield View(
        name="compression",
        title="What vocabulary compression is worth",
        lead="Compression gives look-alike tokens one id, so that spellings of the same n-gram "
        "meet on one row: fewer distinct n-grams, fewer n-grams that share a row.",
        parts=(
            Row(parts=charts),
            Table(title="Effect of compressing the vocabulary", columns=columns, rows=tuple(rows)),
        ),
    )


def _slot(order: int, before: float, after: float) -> Slot:
    color = order_color(order)
    bars = (
        Bar(label="raw token ids", color=color, value=before, light=True),
        Bar(label="compressed vocabulary", color=color, value=after),
    )
    return Slot(label=order_name(order), bars=bars)


def _by_use(columns: Sequence[ColumnStats]) -> Estimate:
    """Return the mean share and the mean error of columns, which use the same sample."""
    return Estimate(
        value=mean(each.shared_occurrences for each in columns),
        error=mean(each.shared_occurrences_error for each in columns),
    )


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

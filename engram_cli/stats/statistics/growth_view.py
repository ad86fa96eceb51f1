"""Draws how the number of distinct n-grams grows with the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engram_cli.charts import Axis, LineChart, order_curve, share_axis
from engram_cli.stats.sampling.ideal import rows_for
from engram_cli.stats.statistic import Results, Statistic
from engram_cli.stats.statistics.collisions import COLUMNS
from engram_cli.stats.statistics.growth import Growth, read_growth
from engram_cli.stats.statistics.growth_curve import OrderGrowth
from engram_cli.stats.statistics.orders import ORDERS
from engram_cli.view import Cell, Column, Row, Table, View, percents

_HERE = "this corpus"
_ASSUMED = "errors assume more documents of the same kind, other text adds more n-grams"
_UNPREDICTED = (
    "larger corpora are not predicted: this takes about 150 documents, or pieces of 16,384 tokens"
)
_SIGMAS = 2.0
_SHARING = (0.5, 0.1)  # shares of n-grams that may share a row


def view(found: tuple[OrderGrowth, ...], results: Results) -> Iterable[View]:
    """Draw the curves, the rows in use, and how many rows are enough."""
    layers = list(dict.fromkeys(own.layer for entry in found for own in entry.occupied))
    used = tuple(
        _rows_chart(found, layer, f", layer {layer}" if len(layers) > 1 else "", results)
        for layer in layers
    )
    rows = [row for entry in found if entry.tokens for row in _enough(entry, results)]
    parts = [_heaps(found), *((Row(used),) if used else ()), _enough_table(rows)]
    yield View(
        name="growth",
        title="Growth",
        lead="A straight line on these axes is a power law (Heaps' law): n-grams never run out. "
        "Dashed is what a corpus of the same kind, ten and a hundred times larger, would hold; "
        "the bands are two standard errors for documents drawn at random from the same source; "
        "other kinds of text, which bring more n-grams, are left out. Size the table for the "
        "corpus it will serve.",
        parts=tuple(parts),
    )


def _enough_table(rows: list[tuple[Cell, ...]]) -> Table:
    columns = (
        *(Column("order"), Column("corpus", "text")),
        *(Column(name, "brief") for name in ("tokens", "distinct n-grams")),
        *percents("error", "occupied", digits=1),
        *(Column(f"rows, {share:.0%} share", "brief") for share in _SHARING),
    )
    return Table(
        "How many rows are enough: rows per head if this share of n-grams may share one",
        columns,
        tuple(rows),
        note=_ASSUMED if any(row[1] != _HERE for row in rows) else _UNPREDICTED,
    )


def _enough(entry: OrderGrowth, results: Results) -> Iterable[tuple[Cell, ...]]:
    """Yield the n-grams of this corpus and of larger ones, and the rows they need."""
    order = entry.order
    distinct, error, share = entry.distinct[-1], entry.errors[-1], None
    for own in results.listed(ORDERS):  # counted from more n-grams than the curve follows
        if own.order == order:
            distinct, error = own.distinct, own.distinct_error
    for first in entry.occupied[:1]:
        rows = _head_rows(results, first.layer, order)
        share = first.rows[-1] / rows if rows else None
    points = [(_HERE, entry.tokens[-1], distinct, error, share)]
    for p in entry.extrapolated:
        share = p.occupied[0].share if p.occupied else None
        points.append((f"{p.factor} times", p.tokens, p.distinct, p.error, share))
    for name, tokens, ngrams, wrong, share in points:
        enough = [rows_for(ngrams, sharing) for sharing in _SHARING]
        yield order, name, tokens, ngrams, wrong / max(ngrams, 1.0), share, *enough


def _head_rows(results: Results, layer: int, order: int) -> int | None:
    """Return the rows of the first head of an order, which stands for its order."""
    columns = results.listed(COLUMNS)
    return next((c.rows for c in columns if (c.layer, c.order) == (layer, order)), None)


def _heaps(found: Sequence[OrderGrowth]) -> LineChart:
    curves = []
    for entry in found:
        points = list(zip(entry.tokens, entry.distinct, strict=True))
        band = [
            (x, max(y - _SIGMAS * error, y / 10, 1.0), y + _SIGMAS * error)
            for (x, y), error in zip(points, entry.errors, strict=True)
        ]
        curves.append(order_curve(entry.order, points, band if any(entry.errors) else ()))
        if entry.extrapolated and points:
            ahead = [(*points[-1], entry.errors[-1])]
            ahead += [(p.tokens, p.distinct, p.error) for p in entry.extrapolated]
            fan = [_fan(x, y, error, points[-1][1]) for x, y, error in ahead]
            line = [(x, y) for x, y, _ in ahead]
            curves.append(order_curve(entry.order, line, fan, "extrapolated", dots=True))
    return LineChart(
        name="heaps",
        title="Distinct n-grams against tokens read",
        description="A rising line for each order on logarithmic axes, with the extrapolation to a "
        "corpus ten and a hundred times larger and its error band.",
        note="both axes logarithmic",
        x=Axis("tokens", log=True),
        y=Axis("distinct n-grams", log=True),
        curves=tuple(curves),
        height=380,
    )


def _fan(x: float, y: float, error: float, met: float) -> tuple[float, float, float]:
    """Return a band whose errors are factors; the n-grams already met do not disappear."""
    factor = (1.0 + error / y) ** _SIGMAS
    return x, max(y / factor, min(met, y)), y * factor


def _rows_chart(
    found: Sequence[OrderGrowth], layer: int, suffix: str, results: Results
) -> LineChart:
    curves = []
    for entry in found:
        used = next((own.rows for own in entry.occupied if own.layer == layer), ())
        rows = _head_rows(results, layer, entry.order)
        if not used or rows is None:
            continue
        points = [(x, met / rows) for x, met in zip(entry.tokens, used, strict=True)]
        curves.append(order_curve(entry.order, points))
        ahead = [
            (point.tokens, own.share)
            for point in entry.extrapolated
            for own in point.occupied
            if own.layer == layer
        ]
        if ahead:
            line = [points[-1], *ahead]
            curves.append(order_curve(entry.order, line, variant="extrapolated", dots=True))
    return LineChart(
        name=f"rows-in-use-{layer}",
        title=f"Rows in use against tokens read{suffix}",
        description="A rising line for each order, from 0 to 100 %: when it nears the top, new "
        "n-grams find no free row.",
        x=Axis("tokens", log=True),
        y=share_axis("share of a head's rows", high=1.0),
        curves=tuple(curves),
        height=300,
    )


GROWTH = Statistic(
    key="growth",
    kind=tuple[OrderGrowth, ...],
    view=view,
    collect=lambda plan: Growth(plan.layout) if plan.options.growth else None,
    read_partial=read_growth,
)

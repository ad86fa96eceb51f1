"""How the number of distinct n-grams grows with the corpus: its typed result and its view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_cli.stats.collisions import COLUMNS
from engram_cli.stats.growth.collector import Growth
from engram_cli.stats.orders import ORDERS
from engram_cli.stats.statistic import Results, Statistic
from engram_cli.view import (
    Axis,
    Cell,
    Column,
    Curve,
    LineChart,
    Row,
    Table,
    View,
    order_color,
    order_name,
)

_SIGMAS = 2.0
_SHARING = (0.5, 0.1)  # shares of n-grams that may share a row


@dataclass(frozen=True, slots=True, kw_only=True)
class OccupiedRows:
    """The occupied rows of the first head of an order in one layer, at each point of the curve."""

    layer: int
    rows: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OccupiedShare:
    """The share of a head's rows that a larger corpus would occupy."""

    layer: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """What a corpus of the same kind, `factor` times larger, would hold."""

    factor: int
    tokens: int
    distinct: float
    error: float
    occupied: tuple[OccupiedShare, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderGrowth:
    """The curve of an order: `distinct` n-grams, with standard `error`, after `tokens` tokens."""

    order: int
    tokens: tuple[int, ...]
    distinct: tuple[float, ...]
    error: tuple[float, ...] = ()
    occupied: tuple[OccupiedRows, ...] = ()
    extrapolated: tuple[Extrapolation, ...] = ()

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard errors; zeros in statistics of earlier versions, which have none."""
        return self.error or (0.0,) * len(self.tokens)


def view(found: tuple[OrderGrowth, ...], results: Results) -> Iterable[View]:
    """Draw the curves, the rows in use, and how many rows are enough."""
    if not found:
        return
    layers = list(dict.fromkeys(own.layer for entry in found for own in entry.occupied))
    charts = [_rows_chart(found, layer, len(layers) > 1, results) for layer in layers]
    used = (Row(parts=tuple(charts)),) if charts else ()
    yield View(
        name="growth",
        title="Growth",
        lead="A straight line on these axes is a power law (Heaps' law): n-grams never run out. "
        "Dashed is what a corpus of the same kind, ten and a hundred times larger, would hold; "
        "the bands are two standard errors for documents drawn at random from the same source; "
        "other kinds of text, which bring more n-grams, are left out. Size the table for the "
        "corpus it will serve.",
        parts=(_heaps(found), *used, *_enough(found, results)),
    )


def rows_for(distinct: float, share: float) -> float:
    """Return the rows with which, under an ideal hash, `share` of the n-grams share a row."""
    return max(distinct - 1.0, 0.0) / -math.log1p(-share)


def _enough(found: Sequence[OrderGrowth], results: Results) -> Iterable[Table]:
    """Draw the n-grams of this corpus and of larger ones, and the rows they need."""
    moduli = {(c.layer, c.order): c.rows for c in reversed(results.listed(COLUMNS))}
    # The orders were counted from more n-grams than the curve follows.
    counted = {entry.order: entry for entry in results.listed(ORDERS)}
    rows: list[tuple[Cell, ...]] = []
    for entry in found:
        if not entry.tokens or not entry.occupied:
            continue
        first, order = entry.occupied[0], entry.order
        occupied = first.rows[-1] / moduli[first.layer, order] if moduli else None
        own = counted.get(order)
        distinct = entry.distinct[-1] if own is None else own.distinct
        error = entry.errors[-1] if own is None else own.distinct_error
        points = [("this corpus", entry.tokens[-1], distinct, error, occupied)]
        points += [
            (f"{p.factor} times", p.tokens, p.distinct, p.error,
             p.occupied[0].share if p.occupied else None)
            for p in entry.extrapolated
        ]  # fmt: skip
        rows += [
            (order, name, tokens, ngrams, wrong / max(ngrams, 1.0), share,
             *(rows_for(ngrams, sharing) for sharing in _SHARING))
            for name, tokens, ngrams, wrong, share in points
        ]  # fmt: skip
    if rows:
        columns = (
            Column(name="order"),
            Column(name="corpus", kind="text"),
            Column(name="tokens", kind="brief"),
            Column(name="distinct n-grams", kind="brief"),
            Column(name="error", kind="percent", digits=1),
            Column(name="occupied", kind="percent", digits=1),
            *(Column(name=f"rows, {share:.0%} share", kind="brief") for share in _SHARING),
        )
        yield Table(
            title="How many rows are enough: rows per head if this share of n-grams may share one",
            note="errors assume more documents of the same kind, other text adds more n-grams",
            columns=columns,
            rows=tuple(rows),
        )


def _heaps(found: Sequence[OrderGrowth]) -> LineChart:
    curves = []
    for entry in found:
        color, name = order_color(entry.order), order_name(entry.order)
        points = tuple(
            (float(x), float(y)) for x, y in zip(entry.tokens, entry.distinct, strict=True)
        )
        band = tuple(
            (x, max(y - _SIGMAS * error, y / 10, 1.0), y + _SIGMAS * error)
            for (x, y), error in zip(points, entry.errors, strict=True)
        )
        curves.append(
            Curve(label=name, color=color, points=points, band=band if any(entry.errors) else ())
        )
        if entry.extrapolated and points:
            ahead = [(float(p.tokens), p.distinct, p.error) for p in entry.extrapolated]
            line = [(*points[-1], entry.errors[-1]), *ahead]
            curves.append(
                Curve(
                    label=name,
                    color=color,
                    variant="extrapolated",
                    dots=True,
                    points=tuple((x, y) for x, y, _ in line),
                    band=tuple(_fan(x, y, error, points[-1][1]) for x, y, error in line),
                )
            )
    return LineChart(
        name="heaps",
        title="Distinct n-grams against tokens read",
        description="A rising line for each order on logarithmic axes, with the extrapolation to a "
        "corpus ten and a hundred times larger and its error band.",
        note="both axes logarithmic",
        x=Axis(title="tokens", log=True),
        y=Axis(title="distinct n-grams", log=True),
        curves=tuple(curves),
        height=380,
    )


def _fan(x: float, y: float, error: float, met: float) -> tuple[float, float, float]:
    """Return a band whose errors are factors; the n-grams already met do not disappear."""
    factor = (1.0 + error / y) ** _SIGMAS
    return x, max(y / factor, min(met, y)), y * factor


def _rows_chart(
    found: Sequence[OrderGrowth], layer: int, several: bool, results: Results
) -> LineChart:
    """Draw the share of a layer's rows in use; the first head stands for its order."""
    moduli = {c.order: c.rows for c in reversed(results.listed(COLUMNS)) if c.layer == layer}
    curves = []
    for entry in found:
        used = next((own for own in entry.occupied if own.layer == layer), None)
        if used is None or entry.order not in moduli:
            continue
        color, name = order_color(entry.order), order_name(entry.order)
        points = tuple(
            (float(x), rows / moduli[entry.order])
            for x, rows in zip(entry.tokens, used.rows, strict=True)
        )
        curves.append(Curve(label=name, color=color, points=points))
        ahead = tuple(
            (float(point.tokens), own.share)
            for point in entry.extrapolated
            for own in point.occupied
            if own.layer == layer
        )
        if ahead and points:
            curves.append(
                Curve(
                    label=name,
                    color=color,
                    variant="extrapolated",
                    dots=True,
                    points=(points[-1], *ahead),
                )
            )
    return LineChart(
        name=f"rows-in-use-{layer}",
        title="Rows in use against tokens read" + (f", layer {layer}" if several else ""),
        description="A rising line for each order, from 0 to 100 %: when it nears the top, new "
        "n-grams find no free row.",
        x=Axis(title="tokens", log=True),
        y=Axis(title="share of a head's rows", unit="percent", low=0.0, high=1.0),
        curves=tuple(curves),
        height=300,
    )


GROWTH = Statistic(
    key="growth",
    kind=tuple[OrderGrowth, ...],
    view=view,
    collect=lambda plan: Growth(plan.layout) if plan.options.growth else None,
    blank=Growth.blank_for,
)

"""Draws which rows are hot, and what caches would catch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from engram_cli.numbers import brief
from engram_cli.stats.locality import CacheHits, HotRows, Locality, LocalityResult, read_locality
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.view import (
    Axis,
    Cell,
    Column,
    Estimate,
    LineChart,
    Table,
    View,
    by_layer,
    counts,
    order_curve,
    percents,
    share_axis,
)

_HOT = (0.001, 0.01, 0.1, 0.2)  # shares of the rows in the table
_CACHES = (0.01, 0.1)


def view(found: LocalityResult, results: Results) -> Iterable[View]:
    """Draw the hot set, and caches."""
    if found.hot:
        yield _hot_view(found)
    if found.lru:
        yield View(
            name="cache",
            title="Caches",
            lead="A cache that keeps the rows used last needs no counts beforehand; compare it "
            "with the hot set at the same number of rows. How many distinct rows a batch fetches "
            "follows from these curves: engram plan --batch.",
            parts=(*by_layer(found.lru, _cache_chart), _cache_table(found)),
        )


def _hot_view(found: LocalityResult) -> View:
    held = found.held_out_tokens
    lead = "Rows chosen and asked by the same tokens mostly flatter the hot set: --holdout tells."
    if held:
        lead = (
            f"Dashed: the same rows, asked by {brief(held)} tokens held out of the counting. Size "
            "a hot set by the dashed lines; the full ones mostly flatter it."
        )
    rows = []
    for entry in found.hot:
        for name, values in (("counted", entry.counted), ("held out", entry.held_out)):
            if values is not None:
                served = dict(zip(entry.rows_share, values, strict=True))
                rows.append((entry.layer, entry.order, name, *map(served.get, _HOT)))
    columns = (
        *(*counts("layer", "order"), Column("look-ups", "text")),
        *percents(*(f"hottest {100 * share:g} % of rows" for share in _HOT), digits=1),
    )
    note = f"{held:,} held-out tokens" if held else ""
    title = "Hot rows: the share of look-ups that they serve"
    return View(
        name="hot-set",
        title="The hot set",
        lead="Keep the hottest rows in fast memory, and this is the share of look-ups that never "
        f"leave it. {lead}",
        parts=(*by_layer(found.hot, _hot_chart), Table(title, columns, tuple(rows), note=note)),
    )


def _hot_chart(layer: int, suffix: str, own: Sequence[HotRows]) -> LineChart:
    curves = [
        order_curve(entry.order, zip(entry.rows_share, values, strict=True), variant=variant)
        for entry in own
        for values, variant in ((entry.counted, ""), (entry.held_out, "held out"))
        if values is not None
    ]
    return LineChart(
        name=f"hot-{layer}",
        title=f"Look-ups caught by the hottest rows{suffix}",
        description="A rising line for each order: the share of look-ups that fall on the hottest "
        "rows, against how many rows are kept, on a logarithmic axis.",
        x=Axis("of the rows kept", "percent", log=True, high=1.0),
        y=share_axis("look-ups caught", high=1.0),
        curves=tuple(curves),
        height=360,
    )


def _cache_chart(layer: int, suffix: str, own: Sequence[CacheHits]) -> LineChart:
    curves = []
    for entry in own:
        points = list(zip(entry.cache_rows, entry.hit_rate, strict=True))
        band = [
            (size, max(rate - 2 * error, 0.0), min(rate + 2 * error, 1.0))
            for (size, rate), error in zip(points, entry.errors, strict=True)
            if error
        ]
        curves.append(order_curve(entry.order, points, band))
    return LineChart(
        name=f"lru-{layer}",
        title=f"Hit rate of a cache of the rows used last{suffix}",
        description="A rising line for each order: the hit rate of a least-recently-used cache "
        "against its size in rows, on a logarithmic axis.",
        note="least recently used leaves first",
        x=Axis("rows in the cache of a head", log=True),
        y=share_axis("hit rate", high=1.0),
        curves=tuple(curves),
        height=320,
    )


def _cache_table(found: LocalityResult) -> Table:
    """Draw the hit rates of the caches nearest to some shares of the rows."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (*(entry.layer, entry.order), *(_cache(entry, share) for share in _CACHES))
        for entry in found.lru
    )
    names = [f"LRU, {100 * share:g} % of rows" for share in _CACHES]
    columns = (*counts("layer", "order"), *percents(*names, digits=1))
    note = "± one standard error; in brackets the rows of the cache"
    return Table("Hit rates of LRU caches", columns, rows, note=note)


def _cache(entry: CacheHits, share: float) -> Estimate:
    """Return the hit rate of the cache nearest to a share of the rows."""
    wanted = math.log(max(share * entry.cache_rows[-1], 1.0))
    at = min(
        range(len(entry.cache_rows)),
        key=lambda index: abs(math.log(entry.cache_rows[index]) - wanted),
    )
    mark = f" ({brief(entry.cache_rows[at])})"
    return Estimate(entry.hit_rate[at], entry.errors[at], mark)


def _collect(plan: CollectorPlan) -> Locality | None:
    wanted = plan.options.locality or plan.holdout is not None
    return Locality(plan.layout, plan.holdout) if wanted else None


LOCALITY = Statistic(
    key="locality",
    kind=LocalityResult,
    view=view,
    collect=_collect,
    read_partial=read_locality,
)

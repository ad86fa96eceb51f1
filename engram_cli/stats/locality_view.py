"""Which rows are hot, and what caches and windows would catch: the typed result and its view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_cli.numbers import brief, count
from engram_cli.stats.locality.collector import Locality
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.view import (
    Axis,
    Bar,
    BarChart,
    Column,
    Estimate,
    Group,
    LineChart,
    Slot,
    Table,
    View,
    by_layer,
    counts,
    grouped,
    order_color,
    order_curve,
    order_name,
    percents,
    share_axis,
)

_HOT = (0.001, 0.01, 0.1, 0.2)  # shares of the rows in the table
_CACHES = (0.01, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRows:
    """The shares of look-ups that the hottest `rows_share` of the rows serve.

    `counted`: of the counted tokens; `held_out`: of held-out tokens, None without any.
    """

    layer: int
    order: int
    held_out: tuple[float, ...] | None = None
    rows_share: tuple[float, ...]
    counted: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRows:
    """Distinct rows over look-ups in windows of `tokens` tokens."""

    layer: int
    order: int
    tokens: int
    distinct_share: float
    error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHits:
    """Hit rates of least-recently-used caches of `cache_rows` rows of one head."""

    layer: int
    order: int
    cache_rows: tuple[int, ...]
    hit_rate: tuple[float, ...]
    error: tuple[float, ...] = ()

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard errors; zeros in statistics of earlier versions, which have none."""
        return self.error or (0.0,) * len(self.cache_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityResult:
    """How unevenly rows are used."""

    hot: tuple[HotRows, ...] = ()
    windows: tuple[WindowRows, ...] = ()
    lru: tuple[CacheHits, ...] = ()
    held_out_tokens: int = 0


def view(found: LocalityResult, results: Results) -> Iterable[View]:
    """Draw the hot set, and caches with windows."""
    if found.hot:
        yield _hot_view(found)
    if found.lru or found.windows:
        parts = (*by_layer(found.lru, _cache_chart), *by_layer(found.windows, _window_chart))
        yield View(
            name="cache",
            title="Caches and batches",
            lead="A cache that keeps the rows used last needs no counts beforehand; compare it "
            "with the hot set at the same number of rows. Inside one batch, rows come back: only "
            "the distinct ones have to be fetched.",
            parts=(*parts, _cache_table(found)),
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


def _window_chart(layer: int, suffix: str, own: Sequence[WindowRows]) -> BarChart:
    slots = tuple(
        Slot(
            count(tokens),
            tuple(
                Bar(order_name(w.order), order_color(w.order), w.distinct_share, w.error)
                for w in windows
            ),
            f"windows of {count(tokens)} tokens",
        )
        for tokens, windows in grouped(own, lambda window: window.tokens).items()
    )
    return BarChart(
        name=f"windows-{layer}",
        title=f"Distinct rows in a window of tokens{suffix}",
        description="For each window length, a bar for each order: distinct rows over look-ups.",
        note="the rest are fetched once and used again",
        y=share_axis("distinct rows / look-ups", high=1.0),
        groups=(Group("tokens in the window", slots),),
    )


def _cache_table(found: LocalityResult) -> Table:
    """Draw windows, and the caches nearest to some shares of the rows."""
    windows = {
        (w.layer, w.order, w.tokens): Estimate(w.distinct_share, w.error) for w in found.windows
    }
    lengths = sorted({window.tokens for window in found.windows})
    rows = tuple(
        (
            *(entry.layer, entry.order),
            *(windows.get((entry.layer, entry.order, length)) for length in lengths),
            *(_cache(entry, share) for share in _CACHES),
        )
        for entry in found.lru
    )
    names = [f"in {length:,} tokens" for length in lengths]
    names += [f"LRU, {100 * share:g} % of rows" for share in _CACHES]
    columns = (*counts("layer", "order"), *percents(*names, digits=1))
    title = "Distinct rows in a window, and hit rates of LRU caches"
    note = "± one standard error; in brackets the rows of the cache"
    return Table(title, columns, rows, note=note)


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
    blank=Locality.blank_for,
)

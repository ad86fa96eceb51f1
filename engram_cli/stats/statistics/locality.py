"""Measures how local look-ups are: what a hot set of rows, or a cache of them, serves.

The section "locality" of stats.json. The hot rows are those of all heads of an order, ranked by
their hits. Caches are simulated on the first head of each order (`lru`). How many distinct rows a
batch looks up follows from the caches: `table.planning.batches`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.charts import Axis, LineChart, order_curve, share_axis
from engram_cli.errors import MismatchError
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import brief
from engram_cli.registry import LazyModule
from engram_cli.stats.collector import Collector, first_heads
from engram_cli.stats.counting.holdout import HeldOut, Holdout, read_held_out
from engram_cli.stats.state import State, nested, numbered, part_of
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.stats.statistics.lru import SAMPLED_ROWS, LruCounts, LruObserver, read_lru
from engram_cli.stats.totals import Counts
from engram_cli.view import Cell, Column, Estimate, Table, View, by_layer, counts, percents

kernels = LazyModule("engram_cli.stats.counting.collector_kernels")

# The shares of the rows that are looked at: 1, 2 and 5 of each power of ten.
SHARES = (*(digit / 10**power for power in (4, 3, 2, 1) for digit in (1, 2, 5)), 1.0)
_HOT = (0.001, 0.01, 0.1, 0.2)  # shares of the rows in the table
_CACHES = (0.01, 0.1)
_LOW = 2**16
_STEP = 2**14  # held-out tokens hashed at a time


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
    lru: tuple[CacheHits, ...] = ()
    held_out_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalityPartial:
    """The caches of each layer and order, and the tokens that were held out, if any."""

    layout: HashLayout
    columns: dict[tuple[int, int], LruCounts]
    held: HeldOut | None

    def state(self) -> State:
        """Return all of it as named arrays."""
        columns = [nested(lru=column.state()) for column in self.columns.values()]
        held = {} if self.held is None else self.held.state()
        return nested(columns=numbered(columns), holdout=held)

    def merge(self, other: LocalityPartial) -> LocalityPartial:
        """Return that of both parts. Raises MismatchError for another --holdout."""
        held = None
        if self.held is not None and other.held is not None:
            held = self.held.merge(other.held)
        elif self.held is not other.held:
            raise MismatchError(
                "one part of the corpus has held-out look-ups, another none",
                "count all parts with the same --holdout",
            )
        columns = {key: column.merge(other.columns[key]) for key, column in self.columns.items()}
        return LocalityPartial(layout=self.layout, columns=columns, held=held)

    def result(self, counts: Counts) -> LocalityResult:
        """Return hot rows and caches by layer and order."""
        return LocalityResult(
            hot=hot_rows(counts, self.held),
            lru=tuple(
                CacheHits(
                    layer=layer,
                    order=order,
                    cache_rows=tuple(column.cache_rows),
                    hit_rate=column.hit_rates(),
                    error=column.errors(),
                )
                for (layer, order), column in self.columns.items()
            ),
            held_out_tokens=0 if self.held is None else self.held.tokens,
        )


def read_locality(layout: HashLayout, state: State) -> LocalityPartial:
    """Return the partial in a `state`. Raises ArtifactError."""
    held = part_of(state, "holdout")
    return LocalityPartial(
        layout=layout,
        columns={
            key: read_lru(rows, part_of(state, f"columns/{index}/lru"))
            for index, (key, rows) in enumerate(first_heads(layout).items())
        },
        held=read_held_out(held, layout.vocab_size) if held else None,
    )


class Locality(Collector):
    """Follows the first head of every order."""

    name = "locality"

    def __init__(
        self,
        layout: HashLayout,
        holdout: Holdout | None = None,
        *,
        sampled_rows: int = SAMPLED_ROWS,
    ) -> None:
        """Follow about `sampled_rows` of each column; `holdout`: what is held out of the count."""
        self._layout = layout
        self._holdout = holdout
        self._columns = {
            key: LruObserver(rows, sampled_rows) for key, rows in first_heads(layout).items()
        }

    @property
    def memory(self) -> int:
        """The bytes of the tables of the caches."""
        return sum(column.memory for column in self._columns.values())

    def row_observer(self, layer: int, order: int) -> LruObserver:
        """Return the observer of a column; every order is followed."""
        return self._columns[layer, order]

    def state(self) -> State:
        """Return the state of every column; what is held out keeps its own."""
        return numbered([column.state() for column in self._columns.values()])

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        for index, column in enumerate(self._columns.values()):
            column.restore(part_of(state, index))

    def partial(self) -> LocalityPartial:
        """Return the caches, and what was held out."""
        return LocalityPartial(
            layout=self._layout,
            columns={key: column.counts() for key, column in self._columns.items()},
            held=None if self._holdout is None else self._holdout.held,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Rows by their hits: `values` int64[v] falling, `rows` how many have so many hits."""

    values: NDArray[np.int64]
    rows: NDArray[np.int64]

    def caught(self, weights: NDArray[np.float64]) -> tuple[float, ...]:
        """Return the share of the `weights` [v] that each of `SHARES` catches, the hottest first.

        Among rows with as many hits none comes first.
        """
        total = float(weights.sum())
        if total == 0.0:
            return (0.0,) * len(SHARES)
        ranks = np.concatenate([[0], np.cumsum(self.rows)])
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        found = np.interp(np.array(SHARES) * ranks[-1], ranks, sums) / total
        return tuple(min(float(share), 1.0) for share in found)


def ranked(hits: NDArray[np.uint32]) -> Ranking:
    """Return the ranking of the rows of an order of a layer, of all its heads together."""
    low = np.zeros(_LOW, dtype=np.int64)
    more = kernels.hit_histogram(hits, low)
    high = np.unique(hits[hits >= _LOW], return_counts=True) if more else (low[:0], low[:0])
    present = np.flatnonzero(low)
    values = np.concatenate([present, high[0].astype(np.int64)])[::-1]
    return Ranking(values=values, rows=np.concatenate([low[present], high[1]])[::-1])


def order_hits(
    layout: HashLayout, hits: NDArray[np.uint32], layer: int, order: int
) -> NDArray[np.uint32]:
    """Return the hits of all rows of an order, by its index, of a layer."""
    entry = layout.layer(layer)
    first, last = order * layout.heads, (order + 1) * layout.heads - 1
    return hits[entry.offsets[first] : entry.offsets[last] + entry.moduli[last]]


def hot_rows(counts: Counts, held: HeldOut | None) -> tuple[HotRows, ...]:
    """Return what the hottest rows of each layer and order catch, also of what was held out."""
    layout, window = counts.layout, None
    hasher = StreamHasher(layout)
    if held is not None:
        ids, starts = held.sample()
        window = hasher.push(ids, starts=starts) if len(ids) else None

    def held_weights(layer: int, order: int, ranking: Ranking) -> NDArray[np.float64]:
        """Return how many held-out look-ups fall on rows of each value."""
        assert window is not None
        entry, hits = layout.layer(layer), counts.hits[layer]
        ascending = ranking.values[::-1]
        weights = np.zeros(len(ascending), dtype=np.float64)
        for begin in range(0, len(window), _STEP):
            part = window.part(begin, min(begin + _STEP, len(window)))
            columns = hasher.columns(part, layer)
            for column in range(order * layout.heads, (order + 1) * layout.heads):
                values = hits[entry.offsets[column] + columns[column].astype(np.int64)]
                places = np.searchsorted(ascending, values.astype(np.int64))
                weights += np.bincount(places, minlength=len(weights))
        return weights[::-1]

    found = []
    for layer in layout.layer_ids:
        for index, order in enumerate(layout.orders):
            ranking = ranked(order_hits(layout, counts.hits[layer], layer, index))
            own = (ranking.values * ranking.rows).astype(np.float64)
            looked_up = None if window is None else held_weights(layer, index, ranking)
            found.append(
                HotRows(
                    layer=layer,
                    order=order,
                    rows_share=SHARES,
                    counted=ranking.caught(own),
                    held_out=None if looked_up is None else ranking.caught(looked_up),
                )
            )
    return tuple(found)


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

"""How many rows have how many hits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engram_cli.charts import Axis, LineChart, order_curve
from engram_cli.registry import LazyModule
from engram_cli.stats.statistic import Counted, Results, Statistic
from engram_cli.view import View, by_layer

kernels = LazyModule("engram_cli.stats.counting.kernels")

_BINS = 34


@dataclass(frozen=True, slots=True, kw_only=True)
class RowHits:
    """The `rows` of an order with hits from `bins[i]` up to `bins[i + 1]`: 0, 1, 2-3, 4-7, ..."""

    layer: int
    order: int
    bins: tuple[int, ...]
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.bins) != len(self.rows):
            raise ValueError(f"{len(self.bins)} bins of hits have {len(self.rows)} counts of rows")


def compute(counted: Counted) -> tuple[RowHits, ...]:
    """Return the histogram of each layer and order."""
    found = []
    layout, heads = counted.counts.layout, counted.counts.layout.heads
    for entry in layout.layers:
        for index, order in enumerate(layout.orders):
            first, last = index * heads, (index + 1) * heads - 1
            end = entry.offsets[last] + entry.moduli[last]
            bins = np.zeros(_BINS, dtype=np.int64)
            kernels.bin_hits(counted.counts.hits[entry.layer][entry.offsets[first] : end], bins)
            used = int(np.flatnonzero(bins)[-1]) + 1
            found.append(
                RowHits(
                    layer=entry.layer,
                    order=order,
                    bins=(0, *(2**power for power in range(used - 1))),
                    rows=tuple(bins[:used].tolist()),
                )
            )
    return tuple(found)


def view(found: tuple[RowHits, ...], results: Results) -> Iterable[View]:
    """Draw a stepped line for each order of each layer."""
    yield View(
        name="row-hits",
        title="Hits of a row",
        lead="Each step to the right doubles the hits, and each line up is ten times as many "
        "rows. The left end are rows that this corpus never trains; the right tail are the few "
        "rows that most look-ups go to.",
        parts=by_layer(found, _chart),
    )


def _chart(layer: int, suffix: str, own: list[RowHits]) -> LineChart:
    longest = max(own, key=lambda entry: len(entry.rows))
    begins = longest.bins[: len(longest.rows)]
    ranges = [
        f"{low:,}" if end == low + 1 else f"{low:,} to {end - 1:,}" for low, end in pairwise(begins)
    ]
    labels = tuple(f"{low}" if low < 1000 else f"{low / 1000:.0f}k" for low in begins)
    curves = (order_curve(entry.order, enumerate(entry.rows), step=True) for entry in own)
    return LineChart(
        name=f"row-hits-{layer}",
        title=f"Rows by hits{suffix}",
        description="A stepped line for each order: how many rows have a number of hits; hits "
        "double from step to step, rows are on a logarithmic axis.",
        note="both axes logarithmic, 0 apart",
        x=Axis("hits of a row, from", labels=labels),
        y=Axis("rows", log=True),
        curves=tuple(curves),
        places=tuple(f"{name} hits" for name in (*ranges, f"{begins[-1]:,} or more")),
    )


ROW_HITS = Statistic(key="row_hits", kind=tuple[RowHits, ...], compute=compute, view=view)

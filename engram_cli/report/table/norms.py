"""How long the rows are, as vectors: a stepped line for each order."""

from __future__ import annotations

from itertools import pairwise

from engram_cli.report.frame import legend
from engram_cli.report.lines import Curve, LineChart
from engram_cli.report.markup import Html
from engram_cli.report.numbers import count, numbers
from engram_cli.report.scales import Axis
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import (
    Entry,
    by,
    color_of,
    entries,
    layer_suffix,
    order_name,
)
from engram_cli.report.tables import figure, numbers_of, row, table

_MOST_BINS = 60  # drawn; wider bins where there are more


def norms(document: Document) -> Section | None:
    """A figure a layer."""
    layers = by(entries(document, "norms"), "layer")
    if not layers:
        return None
    charts = [
        _figure(layer, own, layer_suffix(list(layers), layer)) for layer, own in layers.items()
    ]
    every = [entry for own in layers.values() for entry in own]
    return Section(
        title="Norms of rows",
        lead="The length of each row as a vector; zero rows are left out. Rows that training has "
        "moved stand apart from those it has not; a second hump is often the rows that were "
        "never hit.",
        body=(row(*charts), numbers_of("norms", _numbers(every))),
    )


def _grid(own: list[Entry]) -> list[float]:
    """The edges of the bins of all orders of a layer, made wider where they are many."""
    edges = sorted({low for entry in own for low in numbers(entry["low"])})
    wide = -(-(len(edges) - 1) // _MOST_BINS)
    return [*edges[:-1:wide], edges[-1]]


def _summed(entry: Entry, edges: list[float]) -> list[float]:
    """The rows of an order by bins between `edges`."""
    sums, at = [0.0] * (len(edges) - 1), 0
    for low, rows in zip(numbers(entry["low"]), numbers(entry["rows"]), strict=False):
        while at + 1 < len(sums) and low >= edges[at + 1]:
            at += 1
        sums[at] += rows
    return sums


def _figure(layer: int, own: list[Entry], suffix: str) -> Html:
    edges = _grid(own)
    curves = tuple(
        Curve(
            label=order_name(entry["order"]),
            color=color_of(entry["order"]),
            points=tuple((float(i), rows) for i, rows in enumerate(_summed(entry, edges))),
            step=True,
        )
        for entry in own
    )
    title = f"Rows by norm{suffix}"
    chart = LineChart(
        name=f"norms-{int(layer)}",
        title=title,
        description="A stepped line for each order: how many rows have a norm in a bin.",
        x=Axis(title="norm, from", labels=tuple(f"{low:.3g}" for low in edges[:-1])),
        y=Axis(title="rows", low=0.0),
        curves=curves,
        y_value=lambda value: f"{value:,.0f}",
        places=tuple(f"norm {low:.4g} to {high:.4g}" for low, high in pairwise(edges)),
    )
    keys = legend(*[(curve.label, "line", curve.color) for curve in curves])
    return figure(chart, title, keys=keys, half=bool(suffix))


def _numbers(every: list[Entry]) -> Html:
    rows = [
        (int(entry["layer"]), int(entry["order"]), f"{low:.4g}", count(value))
        for entry in every
        for low, value in zip(numbers(entry["low"]), numbers(entry["rows"]), strict=False)
    ]
    return table((">layer", ">order", ">norm from", ">rows"), rows, caption="Norms of rows")

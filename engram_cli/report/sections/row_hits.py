"""How many rows have how many hits, on logarithmic axes."""

from __future__ import annotations

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


def row_hits(document: Document) -> Section | None:
    """A stepped line for each order."""
    layers = by(entries(document, "row_hits"), "layer")
    if not layers:
        return None
    charts = [_figure(layer, own, layer_suffix(list(layers), layer)) for layer, own in
              layers.items()]  # fmt: skip
    every = [entry for own in layers.values() for entry in own]
    return Section(
        title="Hits of a row",
        lead="Each step to the right doubles the hits, and each line up is ten times as many "
        "rows. The left end are rows that this corpus never trains; the right tail are the few "
        "rows that most look-ups go to.",
        body=(row(*charts), numbers_of("hits of a row", _numbers(every))),
    )


def _bins(entry: Entry) -> list[str]:
    """What each bin holds: 0, 1, 2-3, 4-7, ... and the last one open."""
    bins = [int(value) for value in numbers(entry["bins"])]
    rows = numbers(entry["rows"])
    ends = [*bins[1:], None][: len(rows)]
    names = []
    for low, end in zip(bins, ends, strict=False):
        if end is None:
            names.append(f"{low:,} or more")
        elif end == low + 1:
            names.append(f"{low:,}")
        else:
            names.append(f"{low:,} to {end - 1:,}")
    return names[: len(rows)]


def _figure(layer: int, own: list[Entry], suffix: str) -> Html:
    longest = max(own, key=lambda entry: len(entry["rows"]))
    begins = [int(value) for value in longest["bins"][: len(longest["rows"])]]
    labels = tuple(f"{low}" if low < 1000 else f"{low / 1000:.0f}k" for low in begins)
    curves = [
        Curve(
            label=order_name(entry["order"]),
            color=color_of(entry["order"]),
            points=tuple((float(i), rows) for i, rows in enumerate(numbers(entry["rows"]))),
            step=True,
        )
        for entry in own
    ]
    title = f"Rows by hits{suffix}"
    chart = LineChart(
        name=f"row-hits-{int(layer)}",
        title=title,
        description="A stepped line for each order: how many rows have a number of hits; hits "
        "double from step to step, rows are on a logarithmic axis.",
        x=Axis(title="hits of a row, from", labels=labels),
        y=Axis(title="rows", log=True),
        curves=tuple(curves),
        height=340,
        y_value=lambda value: f"{value:,.0f}",
        places=tuple(f"{name} hits" for name in _bins(longest)),
    )
    keys = legend(*[(curve.label, "line", curve.color) for curve in curves])
    return figure(chart, title, note="both axes logarithmic, 0 apart", keys=keys,
                  half=bool(suffix))  # fmt: skip


def _numbers(every: list[Entry]) -> Html:
    rows = [
        (int(entry["layer"]), int(entry["order"]), label, count(value))
        for entry in every
        for label, value in zip(_bins(entry), numbers(entry["rows"]), strict=True)
    ]
    return table((">layer", ">order", "hits", ">rows"), rows, caption="Hits of a row")

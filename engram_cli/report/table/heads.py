"""The heads: which part of their rows the corpus uses, and all figures of each as a table."""

from __future__ import annotations

from engram_cli.report.bars import Bar, BarChart, Group, Slot
from engram_cli.report.markup import Html
from engram_cli.report.numbers import count, number, percent
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
from engram_cli.report.tables import figure, row, table


def rows_used(document: Document) -> Section | None:
    """A bar a head: the share of its rows with a hit."""
    columns = [entry for entry in entries(document, "columns") if entry["hit_rows"] is not None]
    if not columns:
        return None
    layers = by(columns, "layer")
    charts = [
        _chart(layer, own, layer_suffix(list(layers), layer)) for layer, own in layers.items()
    ]
    return Section(
        title="Rows the corpus uses",
        lead="The share of each head's rows with at least one hit. The others never get a "
        "gradient from this corpus: what they hold is what they were filled with.",
        body=(row(*charts),),
    )


def _chart(layer: int, own: list[Entry], suffix: str) -> Html:
    groups = tuple(
        Group(
            label=order_name(order),
            slots=tuple(
                Slot(
                    label=f"{int(entry['head'])}",
                    title=f"{order_name(order)}, head {int(entry['head'])}",
                    bars=(
                        Bar(
                            label="rows with a hit",
                            color=color_of(order),
                            value=number(entry["hit_rows"]) / number(entry["rows"]),
                        ),
                    ),
                )
                for entry in of_order
            ),
        )
        for order, of_order in by(own, "order").items()
    )
    title = f"Rows with a hit{suffix}"
    chart = BarChart(
        name=f"rows-used-{int(layer)}",
        title=title,
        description="A bar for each head: the share of its rows with a hit.",
        x_title="",
        y=Axis(title="share of rows", low=0.0, most=1.0, format=percent),
        groups=groups,
    )
    return figure(chart, title, half=bool(suffix))


def heads(document: Document) -> Section | None:
    """The layout's columns with the figures of their rows."""
    layout = entries(document, "layout")
    if not layout:
        return None
    known = {(e["layer"], e["order"], e["head"]): e for e in entries(document, "columns")}
    rows = []
    for entry in layout:
        own = known.get((entry["layer"], entry["order"], entry["head"]), {})
        rows.append(
            (
                *(count(entry[name]) for name in ("layer", "order", "head", "modulus", "offset")),
                *(_cell(own.get(name)) for name in _FIGURES),
            )
        )
    names = (">layer", ">order", ">head", ">rows", ">first row", *_NAMES)
    return Section(
        title="The heads",
        lead="The layout column by column: its rows, where they begin in the layer's table, and "
        "what they hold.",
        body=(table(names, rows, caption="Heads"),),
    )


_FIGURES = ("hit_rows", "max_hits", "zero", "not_finite", "mean", "least", "most", "hit_mean",
            "unhit_mean")  # fmt: skip
_NAMES = (">rows hit", ">most hits", ">zero rows", ">not finite", ">mean norm", ">least", ">most",
          ">mean, hit", ">mean, not hit")  # fmt: skip


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else count(value)

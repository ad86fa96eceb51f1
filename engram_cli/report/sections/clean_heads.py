"""How many heads of an n-gram are its own: the case for several heads, in one histogram."""

from __future__ import annotations

from engram_cli.report.bars import Bar, BarChart, Group, Slot
from engram_cli.report.frame import legend
from engram_cli.report.markup import Html
from engram_cli.report.numbers import number, numbers, percent
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
from engram_cli.report.sections.occupancy import percent_tick
from engram_cli.report.tables import figure, numbers_of, row, table


def clean_heads(document: Document) -> Section | None:
    """A histogram for each order of each layer."""
    found = entries(document, "clean_heads")
    if not found:
        return None
    layers = list(by(found, "layer"))
    figures = [_figure(entry, layer_suffix(layers, entry["layer"])) for entry in found]
    lost = max(numbers(entry["ngrams"])[0] for entry in found)
    return Section(
        title="How many heads are clean",
        lead="An n-gram's head is clean when nothing else of the corpus falls on its row. A model "
        "reads all heads together, so an n-gram is lost only when none is clean: "
        f"{percent(lost)} of the n-grams of the worst order. Purity is the part of a row's hits "
        "that is the n-gram's own.",
        body=(row(*figures), numbers_of("clean heads", _numbers(found))),
    )


def _figure(entry: Entry, suffix: str) -> Html:
    order, color = entry["order"], color_of(entry["order"])
    ngrams, uses = numbers(entry["ngrams"]), numbers(entry["occurrences"])
    ideal = numbers(entry["ideal"])
    slots = tuple(
        Slot(
            label=str(clean),
            title=f"{clean} of {len(ngrams) - 1} heads clean",
            bars=(
                Bar(label="n-grams", color=color, value=a, ideal=i),
                Bar(label="look-ups", color=color, value=b, light=True),
            ),
        )
        for clean, (a, b, i) in enumerate(zip(ngrams, uses, ideal, strict=True))
    )
    name = f"{order_name(order)}{suffix}"
    return figure(
        BarChart(
            name=f"clean-{int(entry['layer'])}-{int(order)}",
            title=f"Clean heads of {name}",
            description="For each number of clean heads, the share of distinct n-grams and of "
            "look-ups that have as many. The tick is an ideal hash's share of n-grams.",
            x_title="",
            y=Axis(title="share", low=0.0, most=1.0, format=percent_tick),
            groups=(Group(label="clean heads", slots=slots),),
            height=280,
        ),
        name,
        note=f"purity {percent(number(entry['purity']))}" if "purity" in entry else None,
        keys=legend(("n-grams", "bar", color), ("look-ups", "light", color),
                    ("ideal hash", "ideal", 0)),
        half=True,
    )  # fmt: skip


def _numbers(found: list[Entry]) -> Html:
    rows = [
        (
            int(entry["layer"]), int(entry["order"]), clean,
            *(percent(number(entry[key][clean]), 3) for key in ("ngrams", "ideal", "occurrences")),
        )
        for entry in found
        for clean in range(len(entry["ngrams"]))
    ]  # fmt: skip
    names = (">layer", ">order", ">clean heads", ">n-grams", ">ideal", ">look-ups")
    return table(names, rows, caption="Clean heads")

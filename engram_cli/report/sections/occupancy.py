"""Rows used and rows shared, head by head, beside an ideal hash."""

from __future__ import annotations

from collections.abc import Callable

from engram_cli.report.bars import Bar, BarChart, Group, Slot
from engram_cli.report.frame import legend
from engram_cli.report.markup import Html
from engram_cli.report.numbers import count, number, percent, ratio
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
from engram_cli.report.tables import figure, numbers_of, table

_MOST_LAYERS = 4


def occupancy(document: Document) -> Section | None:
    """Three figures a layer, and every number of every column."""
    layers = by(entries(document, "columns"), "layer")
    if not layers:
        return None
    body: list[Html] = []
    for layer, columns in list(layers.items())[:_MOST_LAYERS]:
        body += _layer(int(layer), columns, layer_suffix(list(layers), layer))
    everything = [column for columns in layers.values() for column in columns]
    flagged = [column for column in everything if column.get("flag")]
    if flagged:
        verdict = (
            f"{len(flagged)} of {len(everything)} columns lie outside the interval of an ideal "
            "hash; they are marked with a triangle."
        )
    elif any("flag" in column for column in everything):
        verdict = "No column lies outside the interval of an ideal hash."
    else:
        verdict = "The black ticks are what an ideal hash would give."
    if len(layers) > _MOST_LAYERS:
        verdict += f" The first {_MOST_LAYERS} of {len(layers)} layers are drawn."
    body.append(numbers_of("every column", _numbers(everything)))
    return Section(
        title="Rows used and shared, head by head",
        lead=f"{verdict} Bars that are high everywhere ask for more rows; one head that stands "
        "out asks for another modulus or seed.",
        body=tuple(body),
    )


def _layer(layer: int, columns: list[Entry], suffix: str) -> list[Html]:
    orders = by(columns, "order")
    keys = [(order_name(order), "bar", color_of(order)) for order in orders]
    used = [_group(order, own, _used) for order, own in orders.items()]
    shared = [_group(order, own, _shared) for order, own in orders.items()]
    against = [
        _group(order, [e for e in own if number(e["ideal_occupied"]) > 0], _against)
        for order, own in orders.items()
    ]
    share = Axis(title="share of the head's rows", low=0.0, most=1.0, format=percent_tick)
    charts = [
        figure(
            BarChart(name=f"occupancy-{layer}", title=f"Rows used by head{suffix}",
                     description="A bar for each head: the share of its rows that were looked up. "
                     "The tick is an ideal hash's share.",
                     x_title="head", y=share, groups=tuple(used)),
            f"Rows used by head{suffix}", note="looked up at least once",
            keys=legend(*keys, ("ideal hash", "ideal", 0)),
        ),
        figure(
            BarChart(name=f"shared-{layer}", title=f"N-grams that share their row{suffix}",
                     description="Two bars for each head: the share of distinct n-grams, and of "
                     "look-ups, whose row holds another n-gram. The tick is an ideal hash's.",
                     x_title="head", y=Axis(title="share", low=0.0, most=1.0, format=percent_tick),
                     groups=tuple(shared)),
            f"N-grams that share their row{suffix}",
            note="of the distinct n-grams (full) and of all look-ups (pale)",
            keys=legend(*keys, ("of look-ups", "light", 7),
                        ("ideal hash", "ideal", 0)),
        ),
    ]  # fmt: skip
    if any(group.slots for group in against):
        charts.append(
            figure(
                BarChart(name=f"against-{layer}",
                         title=f"Rows used, held against the ideal{suffix}",
                         description="A dot for each head: rows used over those an ideal hash "
                         "would use, with four standard errors of the ideal.",
                         x_title="head", y=Axis(title="used / ideal", format=_short_ratio),
                         groups=tuple(group for group in against if group.slots),
                         dots=True, sigmas=4.0, height=240, y_value=ratio),
                f"Rows used, held against the ideal{suffix}",
                note="whiskers of four standard errors; triangles are false in 1 report of 1,000",
                keys=legend(*[(name, "dot", color) for name, _, color in keys],
                            ("ideal hash", "one", 0)),
            )
        )  # fmt: skip
    return charts


def _group(
    order: int, columns: list[Entry], bars: Callable[[Entry, int], tuple[Bar, ...]]
) -> Group:
    """The heads of an order side by side."""
    color, name = color_of(order), order_name(order)
    heads = [(str(int(entry["head"])), entry) for entry in columns]
    return Group(
        label=name,
        slots=tuple(
            Slot(label=head, title=f"{name}, head {head}", bars=bars(entry, color))
            for head, entry in heads
        ),
    )


def _used(entry: Entry, color: int) -> tuple[Bar, ...]:
    rows = number(entry["rows"])
    return (
        Bar(
            label="rows used",
            color=color,
            value=number(entry["occupied"]) / rows,
            ideal=number(entry["ideal_occupied"]) / rows,
            flag=_flag(entry),
        ),
    )


def _shared(entry: Entry, color: int) -> tuple[Bar, ...]:
    return (
        Bar(
            label="n-grams",
            color=color,
            value=number(entry["shared"]),
            error=number(entry["shared_error"]),
            ideal=number(entry["ideal_shared"]),
        ),
        Bar(
            label="look-ups",
            color=color,
            light=True,
            value=number(entry["shared_occurrences"]),
            error=number(entry["shared_occurrences_error"]),
        ),
    )


def _against(entry: Entry, color: int) -> tuple[Bar, ...]:
    ideal = number(entry["ideal_occupied"])
    error = number(entry.get("ideal_occupied_error", 0))
    value = number(entry["occupied"]) / ideal
    return (Bar(label="used / ideal", color=color, value=value, error=error / ideal),)


def percent_tick(value: float) -> str:
    """A share as a tick."""
    return f"{100 * value:.3g}\u202f%"


def _short_ratio(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _flag(entry: Entry) -> str | None:
    flag = entry.get("flag")
    return flag if flag in ("above", "below") else None


def _points(error: float) -> str:
    return f" ±{100 * error:.2f}" if error > 0 else ""


def _numbers(columns: list[Entry]) -> Html:
    rows = [
        (
            count(entry["layer"]),
            count(entry["order"]),
            count(entry["head"]),
            count(entry["rows"]),
            count(entry["occupied"]),
            count(entry["ideal_occupied"]),
            percent(number(entry["shared"]), 2),
            percent(number(entry["ideal_shared"]), 2),
            percent(number(entry["shared_occurrences"]), 2)
            + _points(number(entry["shared_occurrences_error"])),
            count(entry["max_hits"]),
            _flag(entry) or "",
        )
        for entry in columns
    ]
    names = (">layer", ">order", ">head", ">rows", ">used", ">ideal", ">n-grams sharing", ">ideal",
             ">look-ups sharing", ">most hits", "flag")  # fmt: skip
    return table(names, rows, caption="Every column")

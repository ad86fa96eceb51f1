"""Distinct n-grams and used rows against tokens read, and estimates for a larger corpus."""

from __future__ import annotations

from engram_cli.report.frame import legend
from engram_cli.report.lines import Curve, LineChart
from engram_cli.report.markup import Html
from engram_cli.report.numbers import brief, count, number, numbers, percent
from engram_cli.report.scales import Axis
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import Entry, color_of, column_rows, entries, order_name
from engram_cli.report.sections.occupancy import percent_tick
from engram_cli.report.tables import figure, numbers_of, row, table

_SIGMAS = 2.0


def growth(document: Document) -> Section | None:
    """Heaps' curve, and the rows in use, with the extrapolation."""
    found = entries(document, "growth")
    if not found:
        return None
    body = [_heaps(found)]
    charts = [chart for layer in _layers(found) if (chart := _rows(document, found, layer))]
    if charts:
        body.append(row(*charts))
    body.append(numbers_of("growth", _numbers(found)))
    return Section(
        title="Growth",
        lead="A straight line on these axes is a power law (Heaps' law): n-grams never run out. "
        "Dashed is what a corpus of the same kind, ten and a hundred times larger, would hold; "
        "the bands are two standard errors for documents drawn at random from the same source; "
        "other kinds of text, which bring more n-grams, are left out. Size the table for the "
        "corpus it will serve.",
        body=tuple(body),
    )


def _heaps(found: list[Entry]) -> Html:
    curves, keys = [], []
    for entry in found:
        color, name = color_of(entry["order"]), order_name(entry["order"])
        tokens, distinct = numbers(entry["tokens"]), numbers(entry["distinct"])
        errors = numbers(entry["error"]) if entry.get("error") else [0.0] * len(tokens)
        seen = list(zip(tokens, distinct, strict=True))
        curves.append(Curve(label=name, color=color, points=tuple(seen),
                            band=_band(tokens, distinct, errors)))  # fmt: skip
        keys.append((name, "line", color))
        ahead = entry.get("extrapolated") or []
        if ahead and seen:
            at = [tokens[-1], *(number(each["tokens"]) for each in ahead)]
            values = [distinct[-1], *(number(each["distinct"]) for each in ahead)]
            wrong = [errors[-1], *(number(each["error"]) for each in ahead)]
            curves.append(Curve(label=f"{name}, extrapolated", color=color, dashed=True, dots=True,
                                points=tuple(zip(at, values, strict=True)),
                                band=_fan(at, values, wrong)))  # fmt: skip
    if any(curve.dashed for curve in curves):
        keys += [("extrapolated", "dashed", 7), ("two standard errors", "band", 7)]
    chart = LineChart(
        name="heaps",
        title="Distinct n-grams against tokens read",
        description="A rising line for each order on logarithmic axes, with the extrapolation "
        "to a corpus ten and a hundred times larger and its error band.",
        x=Axis(title="tokens", log=True),
        y=Axis(title="distinct n-grams", log=True),
        curves=tuple(curves),
        height=380,
    )
    return figure(chart, "Distinct n-grams against tokens read", note="both axes logarithmic",
                  keys=legend(*keys))  # fmt: skip


def _band(
    xs: list[float], ys: list[float], errors: list[float]
) -> tuple[tuple[float, float, float], ...]:
    if not any(errors):
        return ()
    return tuple(
        (x, max(y - _SIGMAS * error, y / 10, 1.0), y + _SIGMAS * error)
        for x, y, error in zip(xs, ys, errors, strict=True)
    )


def _fan(
    xs: list[float], ys: list[float], errors: list[float]
) -> tuple[tuple[float, float, float], ...]:
    """The band of an extrapolation: errors are factors, and what was met does not go away."""
    found = []
    for x, y, error in zip(xs, ys, errors, strict=True):
        factor = (1.0 + error / y) ** _SIGMAS
        found.append((x, max(y / factor, min(ys[0], y)), y * factor))
    return tuple(found)


def _layers(found: list[Entry]) -> list[int]:
    layers: list[int] = []
    for entry in found:
        for own in entry.get("occupied") or []:
            if int(own["layer"]) not in layers:
                layers.append(int(own["layer"]))
    return layers


def _rows(document: Document, found: list[Entry], layer: int) -> Html | None:
    """The share of a layer's rows in use; the first head stands for its order."""
    curves, keys = [], []
    for entry in found:
        heads = column_rows(document, layer, entry["order"])
        used = [own for own in entry.get("occupied") or [] if own["layer"] == layer]
        if not heads or not used:
            continue
        color, name = color_of(entry["order"]), order_name(entry["order"])
        tokens, rows = numbers(entry["tokens"]), numbers(used[0]["rows"])
        points = [(x, met / heads[0]) for x, met in zip(tokens, rows, strict=True)]
        curves.append(Curve(label=name, color=color, points=tuple(points)))
        keys.append((name, "line", color))
        ahead = [
            (number(each["tokens"]), number(own["share"]))
            for each in entry.get("extrapolated") or []
            for own in each.get("occupied") or []
            if own["layer"] == layer
        ]
        if ahead and points:
            curves.append(Curve(label=f"{name}, extrapolated", color=color, dashed=True, dots=True,
                                points=(points[-1], *ahead)))  # fmt: skip
    if not curves:
        return None
    several = len(_layers(found)) > 1
    title = "Rows in use against tokens read" + (f", layer {layer}" if several else "")
    chart = LineChart(
        name=f"rows-in-use-{layer}",
        title=title,
        description="A rising line for each order, from 0 to 100 %: when it nears the top, new "
        "n-grams find no free row.",
        x=Axis(title="tokens", log=True),
        y=Axis(title="share of a head's rows", low=0.0, high=1.0, format=percent_tick),
        curves=tuple(curves),
        height=300,
        y_value=percent,
    )
    return figure(chart, title, keys=legend(*keys, ("extrapolated", "dashed", 7)), half=several)


def _numbers(found: list[Entry]) -> Html:
    rows = []
    for entry in found:
        order = int(entry["order"])
        tokens, distinct = numbers(entry["tokens"]), numbers(entry["distinct"])
        errors = numbers(entry["error"]) if entry.get("error") else [0.0] * len(tokens)
        rows += [
            (order, count(x), count(y), f"± {brief(e)}" if e else "", "counted")
            for x, y, e in zip(tokens, distinct, errors, strict=True)
        ]
        rows += [
            (order, count(each["tokens"]), count(each["distinct"]),
             f"± {brief(number(each['error']))}", f"{number(each['factor']):g} times larger")
            for each in entry.get("extrapolated") or []
        ]  # fmt: skip
    names = (">order", ">tokens", ">distinct n-grams", ">standard error", "how")
    return table(names, rows, caption="Growth")

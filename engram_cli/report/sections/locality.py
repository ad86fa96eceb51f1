"""Which rows are hot, and what a cache would catch."""

from __future__ import annotations

from engram_cli.report.bars import Bar, BarChart, Group, Slot
from engram_cli.report.frame import legend
from engram_cli.report.lines import Curve, LineChart
from engram_cli.report.markup import Html
from engram_cli.report.numbers import brief, count, number, numbers, percent
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


def hot_set(document: Document) -> Section | None:
    """The share of look-ups that the hottest rows catch."""
    locality = document.get("locality") or {}
    layers = by(entries(locality, "hot"), "layer")
    if not layers:
        return None
    unseen = number(locality.get("held_out_tokens") or 0)
    lead = (
        "Keep the hottest rows in fast memory, and this is the share of look-ups that never leave "
        "it. "
    )
    if unseen:
        lead += (
            f"Dashed: the same rows, asked by {brief(unseen)} tokens held out of the counting. "
            "Size a hot set by the dashed lines; the full ones mostly flatter it."
        )
    else:
        lead += (
            "Rows chosen and asked by the same tokens mostly flatter the hot set: --holdout tells."
        )
    charts = [_hot(layer, own, layer_suffix(list(layers), layer)) for layer, own in layers.items()]
    every = [entry for own in layers.values() for entry in own]
    return Section(
        title="The hot set",
        lead=lead,
        body=(row(*charts), numbers_of("hot set", _hot_numbers(every))),
    )


def cache(document: Document) -> Section | None:
    """Hit rates of a cache that fills itself, and repeats in short windows."""
    locality = document.get("locality") or {}
    lru, windows = by(entries(locality, "lru"), "layer"), entries(locality, "windows")
    if not lru and not windows:
        return None
    body = []
    if lru:
        names = list(lru)
        body.append(
            row(*[_lru(layer, own, layer_suffix(names, layer)) for layer, own in lru.items()])
        )
    if windows:
        layers = by(windows, "layer")
        names = list(layers)
        body.append(
            row(
                *[_windows(layer, own, layer_suffix(names, layer)) for layer, own in layers.items()]
            )
        )
    if lru:
        every = [entry for own in lru.values() for entry in own]
        body.append(numbers_of("cache", _lru_numbers(every)))
    return Section(
        title="Caches and batches",
        lead="A cache that keeps the rows used last needs no counts beforehand; compare it with "
        "the hot set at the same number of rows. Inside one batch, rows come back: only the "
        "different ones have to be fetched.",
        body=tuple(body),
    )


def _hot(layer: int, own: list[Entry], suffix: str) -> Html:
    curves, keys = [], []
    for entry in own:
        name, color = order_name(entry["order"]), color_of(entry["order"])
        shares = numbers(entry["rows_share"])
        for key, dashed in (("counted", False), ("held_out", True)):
            if entry.get(key) is None:
                continue
            points = tuple(zip(shares, numbers(entry[key]), strict=True))
            label = f"{name}, held out" if dashed else name
            curves.append(Curve(label=label, color=color, points=points, dashed=dashed))
        keys.append((name, "line", color))
    if any(curve.dashed for curve in curves):
        keys.append(("held out", "dashed", 7))
    title = f"Look-ups caught by the hottest rows{suffix}"
    chart = LineChart(
        name=f"hot-{int(layer)}",
        title=title,
        description="A rising line for each order: the share of look-ups that fall on the hottest "
        "rows, against how many rows are kept, on a logarithmic axis.",
        x=Axis(title="of the rows kept", log=True, high=1.0, format=percent_tick),
        y=Axis(title="look-ups caught", low=0.0, high=1.0, format=percent_tick),
        curves=tuple(curves),
        height=360,
        x_value=percent,
        y_value=percent,
    )
    return figure(chart, title, keys=legend(*keys), half=bool(suffix))


def _lru(layer: int, own: list[Entry], suffix: str) -> Html:
    curves = [
        Curve(
            label=order_name(entry["order"]),
            color=color_of(entry["order"]),
            points=tuple(
                zip(numbers(entry["cache_rows"]), numbers(entry["hit_rate"]), strict=True)
            ),
            band=tuple(
                (size, max(rate - 2 * error, 0.0), min(rate + 2 * error, 1.0))
                for size, rate, error in zip(
                    numbers(entry["cache_rows"]),
                    numbers(entry["hit_rate"]),
                    _errors(entry),
                    strict=True,
                )
                if error
            ),
        )
        for entry in own
    ]
    title = f"Hit rate of a cache of the rows used last{suffix}"
    chart = LineChart(
        name=f"lru-{int(layer)}",
        title=title,
        description="A rising line for each order: the hit rate of a least-recently-used cache "
        "against its size in rows, on a logarithmic axis.",
        x=Axis(title="rows in the cache of a head", log=True),
        y=Axis(title="hit rate", low=0.0, high=1.0, format=percent_tick),
        curves=tuple(curves),
        height=320,
        y_value=percent,
    )
    keys = legend(*[(curve.label, "line", curve.color) for curve in curves])
    note = "least recently used leaves first; bands of two standard errors"
    return figure(chart, title, note=note, keys=keys, half=bool(suffix))


def _windows(layer: int, own: list[Entry], suffix: str) -> Html:
    slots = tuple(
        Slot(
            label=count(tokens),
            title=f"windows of {count(tokens)} tokens",
            bars=tuple(
                Bar(label=order_name(entry["order"]), color=color_of(entry["order"]),
                    value=number(entry["distinct_share"]))
                for entry in at
            ),
        )
        for tokens, at in by(own, "tokens").items()
    )  # fmt: skip
    title = f"Different rows in a window of tokens{suffix}"
    chart = BarChart(
        name=f"windows-{int(layer)}",
        title=title,
        description="For each window length, a bar for each order: different rows over look-ups.",
        x_title="",
        y=Axis(title="different rows / look-ups", low=0.0, high=1.0, format=percent_tick),
        groups=(Group(label="tokens in the window", slots=slots),),
        height=280,
    )
    keys = legend(*[(order_name(o), "bar", color_of(o)) for o in by(own, "order")])
    return figure(chart, title, note="the rest are fetched once and used again", keys=keys,
                  half=bool(suffix))  # fmt: skip


def _hot_numbers(every: list[Entry]) -> Html:
    rows = []
    for entry in every:
        held = entry.get("held_out") or [None] * len(entry["rows_share"])
        rows += [
            (int(entry["layer"]), int(entry["order"]), percent(share), percent(caught),
             "-" if other is None else percent(number(other)))
            for share, caught, other in zip(
                numbers(entry["rows_share"]), numbers(entry["counted"]), held, strict=True)
        ]  # fmt: skip
    names = (">layer", ">order", ">rows kept", ">look-ups caught", ">held out")
    return table(names, rows, caption="Hot set")


def _lru_numbers(every: list[Entry]) -> Html:
    rows = [
        (int(entry["layer"]), int(entry["order"]), count(size), percent(rate),
         f"± {percent(error)}" if error else "")
        for entry in every
        for size, rate, error in zip(
            numbers(entry["cache_rows"]), numbers(entry["hit_rate"]), _errors(entry), strict=True)
    ]  # fmt: skip
    names = (">layer", ">order", ">rows in the cache", ">hit rate", ">standard error")
    return table(names, rows, caption="Cache")


def _errors(entry: Entry) -> list[float]:
    """The errors of the hit rates; earlier versions wrote none."""
    return numbers(entry.get("error") or [0.0] * len(entry["cache_rows"]))

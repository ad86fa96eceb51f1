"""Draws charts as SVG: bars from zero, and curves with error bands."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from itertools import pairwise

from engram_cli.report.axes import Frame, hue, path, tip
from engram_cli.report.markup import Html, tag
from engram_cli.view import Axis, Bar, BarChart, Chart, Curve, LineChart, Slot

_GAP = 0.6  # between groups of bars, in slots
_MOST_STRIPS = 120
_SIGMAS = 2.0
_HEIGHT = 290  # pixels


def draw_chart(chart: Chart, width: int) -> Html:
    """Return the SVG of a chart, `width` pixels wide."""
    return _bars(chart, width) if isinstance(chart, BarChart) else _lines(chart, width)


def _bars(chart: BarChart, width: int) -> Html:
    slots = [slot for group in chart.groups for slot in group.slots]
    places = [
        place + index * _GAP
        for place, index in enumerate(
            i for i, group in enumerate(chart.groups) for _ in group.slots
        )
    ]
    end = places[-1] + 1.0 if places else 1.0
    x = Axis(title=chart.x_title, low=-0.25, high=end + 0.25)
    frame = Frame.fit(width, _HEIGHT, x, chart.y, [0.0, end], _bar_values(chart))
    wide = frame.x(1.0) - frame.x(0.0)
    bare = replace(frame, x=replace(frame.x, ticks=()))
    parts = [bare.axes(x, chart.y), _bar_labels(chart, frame, wide)]
    strips = []
    for place, slot in zip(places, slots, strict=True):
        left = frame.x(place)
        parts.append(_slot(frame, slot, left, wide))
        strips.append(frame.strip(left, left + wide, None, _bar_tip(chart, slot)))
    strip = tag("g", *strips, class_="strips")
    return frame.svg(f"{chart.name}-{width}", chart.title, chart.description, *parts, strip)


def _bar_values(chart: BarChart) -> list[float]:
    bars = [bar for group in chart.groups for slot in group.slots for bar in slot.bars]
    values = [bar.value + _SIGMAS * bar.error for bar in bars]
    return values + [bar.ideal for bar in bars if bar.ideal is not None]


def _bar_labels(chart: BarChart, frame: Frame, wide: float) -> Html:
    """Draw the name of each slot that has room, and of each group."""
    bottom = frame.y.begin
    parts, at = [], 0.0
    for group in chart.groups:
        longest = max((len(slot.label) for slot in group.slots), default=0)
        every = max(1, -(-int(6.8 * longest + 4) // max(int(wide), 1)))
        for i, slot in enumerate(group.slots):
            if i % every == 0:
                x = frame.x(at + i + 0.5)
                parts.append(tag("text", slot.label, class_="tick mid", x=x, y=bottom + 16))
        middle = frame.x(at + len(group.slots) / 2)
        parts.append(tag("text", group.label, class_="group mid", x=middle, y=bottom + 34))
        at += len(group.slots) + _GAP
    return tag("g", *parts)


def _slot(frame: Frame, slot: Slot, left: float, wide: float) -> Html:
    own = min(wide * 0.78 / max(len(slot.bars), 1), 46.0)
    begin = left + (wide - own * len(slot.bars)) / 2
    return tag("g", *[_bar(frame, bar, begin + i * own, own) for i, bar in enumerate(slot.bars)])


def _bar(frame: Frame, bar: Bar, left: float, wide: float) -> Html:
    zero, top = frame.y(max(frame.y.low, 0.0)), frame.y(bar.value)
    pad = min(1.0, wide * 0.06)
    parts = [
        tag("rect", x=left + pad, y=top, width=max(wide - 2 * pad, 1.0),
            height=max(zero - top, 0.0), rx=min(2.0, wide / 6),
            class_="bar light" if bar.light else "bar")
    ]  # fmt: skip
    if bar.ideal is not None:
        at = frame.y(bar.ideal)
        parts.append(tag("line", class_="ideal", x1=left - 1.5, x2=left + wide + 1.5, y1=at, y2=at))
    if bar.flag:
        sign = "▲" if bar.flag == "above" else "▼"
        parts.append(tag("text", sign, class_="flag mid", x=left + wide / 2, y=top - 6))
    return tag("g", *parts, class_=hue(bar.color))


def _bar_tip(chart: BarChart, slot: Slot) -> str:
    lines: list[tuple[str, str, int | None]] = []
    for bar in slot.bars:
        error = f" ± {chart.y.text(_SIGMAS * bar.error)}" if bar.error else ""
        lines.append((bar.label, f"{chart.y.text(bar.value)}{error}", bar.color))
        if bar.ideal is not None:
            lines.append((f"{bar.label}, ideal", chart.y.text(bar.ideal), None))
        if bar.flag:
            lines.append(("outside the interval", bar.flag, None))
    return tip(slot.title or slot.label, lines)


def _lines(chart: LineChart, width: int) -> Html:
    xs = [x for curve in chart.curves for x, _ in curve.points]
    ys = [y for curve in chart.curves for _, y in curve.points]
    ys += [y for curve in chart.curves for _, low, high in curve.band for y in (low, high)]
    frame = Frame.fit(width, chart.height, chart.x, chart.y, xs, ys)
    return frame.svg(
        f"{chart.name}-{width}",
        chart.title,
        chart.description,
        frame.axes(chart.x, chart.y, x_grid=chart.x.labels is None),
        *[_curve(chart, frame, curve) for curve in chart.curves],
        tag("g", *_line_strips(chart, frame), class_="strips"),
    )


def _drawable(chart: LineChart, curve: Curve) -> list[tuple[float, float]]:
    """Return the points that a logarithmic axis can hold."""
    return [
        (x, y)
        for x, y in curve.points
        if (x > 0 or not chart.x.log or chart.x.labels) and (y > 0 or not chart.y.log)
    ]


def _curve(chart: LineChart, frame: Frame, curve: Curve) -> Html:
    points = [(frame.x(x), frame.y(y)) for x, y in _drawable(chart, curve)]
    parts: list[Html] = []
    if curve.band:
        upper = [(frame.x(x), frame.y(high)) for x, _, high in curve.band]
        lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(curve.band)]
        parts.append(path(upper + lower, "band", closed=True))
    if curve.step:
        half = (frame.x(1.0) - frame.x(0.0)) / 2
        points = [(x + side * half, y) for x, y in points for side in (-1, 1)]
    if len(points) > 1:
        parts.append(path(points, "line dashed" if curve.variant else "line"))
    if curve.dots or len(points) == 1:
        parts += [tag("circle", cx=x, cy=y, r=3, class_="dot") for x, y in points]
    return tag("g", *parts, class_=f"curve {hue(curve.color)}")


def _line_strips(chart: LineChart, frame: Frame) -> list[Html]:
    """Draw a strip for each place with a value, which ends half-way to its neighbours."""
    places = sorted({x for curve in chart.curves for x, _ in _drawable(chart, curve)})
    places = places[:: max(1, -(-len(places) // _MOST_STRIPS))]
    pixels = [frame.x(x) for x in places]
    edges = [frame.x.begin, *((a + b) / 2 for a, b in pairwise(pixels)), frame.x.end]
    strips = []
    for i, (place, pixel) in enumerate(zip(places, pixels, strict=True)):
        lines = [
            (curve.name, chart.y.text(value), curve.color)
            for curve in chart.curves
            if (value := _value(curve.points, place)) is not None
        ]
        strips.append(
            frame.strip(edges[i], edges[i + 1], pixel, tip(place_name(chart, place), lines))
        )
    return strips


def place_name(chart: LineChart, x: float) -> str:
    """Return a place on the x axis in words: "1,024 tokens"."""
    if chart.places is not None:
        return chart.places[round(x)]
    return f"{chart.x.text(x)} {chart.x.title}"


def _value(points: tuple[tuple[float, float], ...], x: float) -> float | None:
    """Return the value of a curve at exactly `x`; its points ascend."""
    at = bisect_left(points, (x, float("-inf")))
    return points[at][1] if at < len(points) and points[at][0] == x else None

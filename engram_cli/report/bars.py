"""Bar charts: groups of slots of bars from zero, each with the ideal beside it; dots around one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engram_cli.report.frame import Frame, Tip, hue
from engram_cli.report.markup import Html, tag
from engram_cli.report.numbers import percent
from engram_cli.report.scales import Axis, Format

_GAP = 0.6  # between groups, in slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One value; `error` is its standard error, `ideal` what it is held against."""

    label: str
    color: int
    value: float
    error: float = 0.0
    ideal: float | None = None
    light: bool = False
    flag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Bars that stand at one place."""

    label: str
    bars: tuple[Bar, ...]
    title: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Slots under one name."""

    label: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Bars from zero; with `dots`, points with `sigmas` standard errors around a line at 1."""

    name: str
    title: str
    description: str
    x_title: str
    y: Axis
    groups: tuple[Group, ...]
    height: int = 300
    dots: bool = False
    sigmas: float = 2.0
    y_value: Format = percent

    def draw(self, width: int) -> Html:
        """The chart, `width` pixels wide."""
        places, slots = self._places()
        end = max(places[-1] + 1.0, 1.0) if places else 1.0
        x = Axis(title=self.x_title, low=-0.25, high=end + 0.25)
        frame = Frame.fit(width, self.height, x, self.y, [0.0, end], self._values())
        wide = frame.x(1.0) - frame.x(0.0)
        bare = Frame(width=width, height=self.height, x=replace(frame.x, ticks=()), y=frame.y)
        parts = [bare.axes(x, self.y), self._labels(frame, wide)]
        if self.dots:
            parts.append(
                tag("line", class_="one", x1=frame.x.begin, x2=frame.x.end,
                    y1=frame.y(1.0), y2=frame.y(1.0))
            )  # fmt: skip
        strips = []
        for place, slot in zip(places, slots, strict=True):
            left = frame.x(place)
            parts.append(self._slot(frame, slot, left, wide))
            strips.append(frame.strip(left, left + wide, None, self._tip(slot)))
        return frame.svg(
            f"{self.name}-{width}",
            self.title,
            self.description,
            *parts,
            tag("g", *strips, class_="strips"),
        )

    def _values(self) -> list[float]:
        bars = [bar for group in self.groups for slot in group.slots for bar in slot.bars]
        values = [bar.value + self.sigmas * bar.error for bar in bars]
        values += [bar.ideal for bar in bars if bar.ideal is not None]
        if self.dots:
            values += [bar.value - self.sigmas * bar.error for bar in bars] + [1.0]
        return values

    def _places(self) -> tuple[list[float], list[Slot]]:
        places, slots, at = [], [], 0.0
        for group in self.groups:
            for slot in group.slots:
                places.append(at)
                slots.append(slot)
                at += 1.0
            at += _GAP
        return places, slots

    def _labels(self, frame: Frame, wide: float) -> Html:
        """The name of each slot where there is room, and of each group."""
        bottom = frame.y.begin
        parts, at = [], 0.0
        for group in self.groups:
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

    def _slot(self, frame: Frame, slot: Slot, left: float, wide: float) -> Html:
        room = wide * 0.78
        own = min(room / max(len(slot.bars), 1), 46.0)
        begin = left + (wide - own * len(slot.bars)) / 2
        parts = []
        for i, bar in enumerate(slot.bars):
            draw = self._dot if self.dots else self._bar
            parts.append(draw(frame, bar, begin + i * own, own))
        return tag("g", *parts)

    def _bar(self, frame: Frame, bar: Bar, left: float, wide: float) -> Html:
        zero, top = frame.y(max(frame.y.low, 0.0)), frame.y(bar.value)
        pad = min(1.0, wide * 0.06)
        parts = [
            tag("rect", x=left + pad, y=top, width=max(wide - 2 * pad, 1.0),
                height=max(zero - top, 0.0), rx=min(2.0, wide / 6),
                class_="bar light" if bar.light else "bar")
        ]  # fmt: skip
        if bar.ideal is not None:
            at = frame.y(bar.ideal)
            parts.append(
                tag("line", class_="ideal", x1=left - 1.5, x2=left + wide + 1.5, y1=at, y2=at)
            )
        if bar.flag:
            sign = "▲" if bar.flag == "above" else "▼"
            parts.append(tag("text", sign, class_="flag mid", x=left + wide / 2, y=top - 6))
        return tag("g", *parts, class_=hue(bar.color))

    def _dot(self, frame: Frame, bar: Bar, left: float, wide: float) -> Html:
        x = left + wide / 2
        low, high = (
            frame.y(bar.value - self.sigmas * bar.error),
            frame.y(bar.value + self.sigmas * bar.error),
        )
        return tag(
            "g",
            tag("line", class_="whisker", x1=x, x2=x, y1=low, y2=high) if bar.error else None,
            tag("circle", class_="dot", cx=x, cy=frame.y(bar.value), r=3.4),
            class_=hue(bar.color),
        )

    def _tip(self, slot: Slot) -> Tip:
        lines: list[tuple[str, str, int | None]] = []
        for bar in slot.bars:
            error = f" ± {self.y_value(self.sigmas * bar.error)}" if bar.error else ""
            lines.append((bar.label, f"{self.y_value(bar.value)}{error}", bar.color))
            if bar.ideal is not None:
                lines.append((f"{bar.label}, ideal", self.y_value(bar.ideal), None))
            if bar.flag:
                lines.append(("outside the interval", bar.flag, None))
        return Tip(title=slot.title or slot.label, lines=tuple(lines))

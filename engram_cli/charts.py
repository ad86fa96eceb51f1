"""Charts as plain data: axes, bars and curves, which `cli/views.py` prints and `report/` draws.

Each order has one name and one color in all charts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

from engram_cli.numbers import brief, count, percent

T = TypeVar("T")
K = TypeVar("K")
Unit = Literal["count", "percent", "decimal", "points"]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis. `low`, `high`: None for as far as the values go, but not past `most`.

    `labels`: names of the places 0, 1, 2, ... in place of numbers.
    """

    title: str
    unit: Unit = "count"
    _: KW_ONLY
    log: bool = False
    low: float | None = None
    high: float | None = None
    most: float | None = None
    labels: tuple[str, ...] | None = None

    def tick(self, value: float) -> str:
        """Return a value as the label of a tick."""
        if self.unit == "points":
            return f"{100 * value:+.3g}"
        return f"{100 * value:.3g}\u202f%" if self.unit == "percent" else brief(value)

    def text(self, value: float) -> str:
        """Return a value in full, for hovering and for the table below a chart."""
        if self.unit == "percent":
            return percent(value)
        if self.unit == "points":
            return f"{100 * value:+.2f} points"
        return f"{value:,.1f}" if self.unit == "decimal" else count(value)


def share_axis(title: str, *, high: float | None = None) -> Axis:
    """Return an axis of shares from 0 to at most 1."""
    return Axis(title=title, unit="percent", low=0.0, high=high, most=1.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from zero; `error` is the standard error, `ideal` a value to compare it with."""

    label: str
    color: int
    value: float
    error: float = 0.0
    ideal: float | None = None
    light: bool = False
    flag: Literal["above", "below"] | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """Bars side by side at one place; `title` names it in full."""

    label: str
    bars: tuple[Bar, ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Slots under one name."""

    label: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Bars from zero. `name` is unique in a page; `description` is read out by screen readers."""

    name: str
    title: str
    description: str
    y: Axis
    groups: tuple[Group, ...]
    note: str = ""
    x_title: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through `points`, with an optional band of (x, low, high); x ascends.

    `variant` says how it differs from the curve of the same label, such as "extrapolated", and
    makes it dashed. `step`: each point is a level as wide as its bin. `dots`: points are drawn;
    `line`: they are joined. Without a line, bands are drawn as bars of error. `wide`: a pale wide
    line, which hides none of the others.
    """

    label: str
    color: int
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()
    variant: str = ""
    dots: bool = False
    step: bool = False
    line: bool = True
    wide: bool = False

    @property
    def name(self) -> str:
        """The label and the variant."""
        return f"{self.label}, {self.variant}" if self.variant else self.label


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a chart that has a name of its own.

    `place`: where its name stands, "above" and right of it, "higher", or "below" and left of it.
    """

    x: float
    y: float
    label: str
    place: Literal["above", "higher", "below"] = "above"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over one pair of axes.

    `marks`: points that are named. `places`: what the places of a labelled x axis are called in
    full. `spark`: the terminal prints each curve as a line of bars.
    """

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    note: str = ""
    height: int = 340
    places: tuple[str, ...] | None = None
    spark: bool = False


Chart: TypeAlias = BarChart | LineChart


def order_name(order: int) -> str:
    """Return "2-grams" for 2."""
    return f"{order}-grams"


def order_color(order: int) -> int:
    """Return the color of an order, the same in every chart."""
    return max(order - 2, 0) if order != 1 else 7


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return items by a key, in the order in which the keys appear."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


class _OfHead(Protocol):
    @property
    def order(self) -> int: ...
    @property
    def head(self) -> int: ...


H = TypeVar("H", bound=_OfHead)


def by_head(items: Iterable[H], bars: Callable[[H, int], tuple[Bar, ...]]) -> tuple[Group, ...]:
    """Return a slot for each head, grouped by order; `bars` gets an item and its color."""
    return tuple(
        Group(
            order_name(order),
            tuple(
                Slot(
                    f"{item.head}",
                    bars(item, order_color(order)),
                    f"{order_name(order)}, head {item.head}",
                )
                for item in own
            ),
        )
        for order, own in grouped(items, lambda item: item.order).items()
    )


def order_curve(
    order: int,
    points: Iterable[tuple[float, float]],
    band: Iterable[tuple[float, float, float]] = (),
    variant: str = "",
    *,
    dots: bool = False,
    step: bool = False,
    line: bool = True,
) -> Curve:
    """Return the curve of an order, in its name and color."""
    name, color = order_name(order), order_color(order)
    return Curve(name, color, tuple(points), tuple(band), variant, dots, step, line)

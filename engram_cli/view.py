"""Views: results as plain data, which `cli/views.py` prints and `report/` draws as a page.

A statistic, or an inspected artifact, gives views. The page draws them with their charts; the
terminal prints the tables, and charts with `spark` as a line of bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from engram_cli.charts import BarChart, Chart, LineChart, grouped
from engram_cli.numbers import brief, count, percent

Kind = Literal["count", "brief", "percent", "decimal", "text", "ngram", "ngrams", "digest"]
Shown = Literal["always", "asked", "page"]
Where = Literal["both", "page", "terminal", "verbose"]
_NUMERIC = frozenset(("count", "brief", "percent", "decimal"))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its standard error; `mark`: a sign after it; `bound`: it is an upper bound."""

    value: float
    error: float = 0.0
    mark: str = ""
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Ngram:
    """An n-gram by its `text`, tokens separated by spaces, and how often it occurs."""

    text: str
    count: Estimate


Cell: TypeAlias = int | float | str | Estimate | tuple[Ngram, ...] | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: what its cells are.

    `kind`: "count", "brief" (63.7 M), "percent" (of a share 0..1) and "decimal" are numbers;
    "ngram" is the text of one n-gram, "ngrams" a tuple of `Ngram`, "digest" a checksum. `digits`:
    after the point; None for as many as the number needs. `bar`: the number is drawn as a bar, on
    the terminal only in a table that the terminal alone has.
    `alarm`: the terminal prints cells with this text in red.
    """

    name: str
    kind: Kind = "count"
    digits: int | None = None
    bar: bool = False
    alarm: str | None = None

    @property
    def numeric(self) -> bool:
        """Whether the cells are numbers, which are right-aligned."""
        return self.kind in _NUMERIC

    def text(self, cell: Cell) -> str:
        """Return a cell as text; a missing number is "-"."""
        if isinstance(cell, tuple):
            return "\n".join(f"{self.text(each.count)} x {each.text}" for each in cell)
        if cell is None or isinstance(cell, str):
            return cell or ("-" if cell is None and self.numeric else "")
        if not isinstance(cell, Estimate):
            return self._number(cell)
        bound = "≤\u202f" if cell.bound else ""
        return f"{bound}{self._number(cell.value)}{self._error(cell.error)}{cell.mark}"

    def _number(self, value: float) -> str:
        if self.kind == "percent":
            return percent(value, self.digits)
        if self.kind == "brief":
            return brief(value)
        if self.kind == "decimal":
            return f"{value:.4g}" if self.digits is None else f"{value:,.{self.digits}f}"
        return count(value)

    def _error(self, error: float) -> str:
        if not error > 0:
            return ""
        digits = 2 if self.digits is None else self.digits
        if self.kind == "percent":
            return f" ±{100 * error:.{digits}f}"
        short = self.kind == "decimal" and self.digits is None
        return f" ±{error:.1g}" if short else f" ±{self._number(error)}"


def counts(*names: str) -> tuple[Column, ...]:
    """Return columns of whole numbers."""
    return tuple(Column(name) for name in names)


def percents(*names: str, digits: int | None = None) -> tuple[Column, ...]:
    """Return columns of shares."""
    return tuple(Column(name, "percent", digits) for name in names)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; every row has one cell for each column.

    `folded`: the page shows it on demand. `limit`: rows that the terminal prints, of each group of
    rows whose first `group` cells are equal; None for all. `where`: what draws it; "verbose": the
    page, and the terminal with --verbose.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    _: KW_ONLY
    note: str = ""
    folded: bool = False
    limit: int | None = None
    group: int = 0
    where: Where = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Shares between things, drawn as shaded cells; `values` and `errors` are [N][N].

    The terminal numbers the columns. `extra` gives each name one more number, such as its tokens.
    """

    name: str
    title: str
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...] = ()
    extra: tuple[int, ...] = ()
    extra_name: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Key numbers of a page: (value as text, what it is, what it is compared with)."""

    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What comes first: a sentence, the figures behind it, and what to run next.

    `facts`: (name, value); `commands`: (command, what it gives), on the page only. Each may be
    empty.
    """

    headline: str
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shades:
    """Pieces of a text, each shaded by its value, with what pointing at it says.

    Values are 0..1, or -1..1: those below 0 get another colour and are underlined. `legend`: values
    with what they mean. `title` and `note` stand above the text.
    """

    pieces: tuple[str, ...]
    shades: tuple[float, ...]
    notes: tuple[str, ...]
    title: str = ""
    note: str = ""
    legend: tuple[tuple[float, str], ...] = ()


def charts_of(parts: Iterable[Part]) -> list[Chart]:
    """Return the charts among parts, also those side by side, in their order."""
    found: list[Chart] = []
    for part in parts:
        if isinstance(part, Row):
            found += charts_of(part.parts)
        elif isinstance(part, BarChart | LineChart):
            found.append(part)
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """Charts, or tables, side by side where there is room."""

    parts: tuple[Chart | Table, ...]


Part: TypeAlias = Summary | Table | Matrix | Tiles | Shades | BarChart | LineChart | Row


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One part of a page or of a command's output.

    `name`: the part's id on a page. `lead`: in a sentence or two, what to see in it (page only).
    `shown`: when the terminal prints it: "always", only when "asked" for, or never ("page").
    """

    name: str
    title: str
    lead: str
    parts: tuple[Part, ...]
    shown: Shown = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One HTML page: `facts` are (name, value) below its heading, `data` is kept in it as JSON."""

    kicker: str
    heading: str
    title: str
    facts: tuple[tuple[str, str], ...]
    views: tuple[View, ...]
    data: Mapping[str, Any]


class _OfLayer(Protocol):
    @property
    def layer(self) -> int: ...


L = TypeVar("L", bound=_OfLayer)


def by_layer(items: Iterable[L], draw: Callable[[int, str, list[L]], Chart]) -> tuple[Row, ...]:
    """Return one chart for each layer, side by side; () without items.

    `draw` gets the layer, what to add to a title ("" if there is one layer), and its items.
    """
    groups = grouped(items, lambda item: item.layer)
    charts = tuple(
        draw(layer, f", layer {layer}" if len(groups) > 1 else "", own)
        for layer, own in groups.items()
    )
    return (Row(charts),) if charts else ()

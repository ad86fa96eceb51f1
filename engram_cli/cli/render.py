"""Formats numbers, facts, tables and progress bars for printing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from engram_cli.cli.plain import clean_segments
from engram_cli.numbers import bytes_text, counted
from engram_cli.remote.store import ReadCount

_UNBOUNDED = 10_000  # columns
_STEPS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit: bytes as 31.5 MB, others as 8.2 M tokens."""
    if unit == "bytes":
        return bytes_text(value)
    for step, letter in _STEPS:
        if value >= step:
            return f"{value / step:.1f} {letter} {unit}".replace(" ", "\u00a0")
    return f"{value:.{0 if value >= 9.95 or value % 1 == 0 else 1}f} {unit}"


def done_of(done: float, total: float | None, unit: str) -> str:
    """Return how much is done: 1.2 MB of 4.8 MB, 7 of 60 steps, 1.2 M of 8.2 M tokens."""
    if total is None:
        return quantity(done, unit)
    shown = quantity(done, unit)
    if unit != "bytes":
        shown = shown.removesuffix(unit).rstrip()
    return f"{shown} of {quantity(total, unit)}"


def short_digest(digest: str) -> str:
    """Return the first half of a digest; --json has all of it."""
    return f"{digest[:39]}..." if len(digest) > 42 else digest


def count(number: int, noun: str) -> str:
    """Return a number and its noun: 1 file, 2 files."""
    return counted(number, noun)


def read_text(read: ReadCount) -> str:
    """Return what was read of a source: 1.2 MB (1,234,567 bytes) in 14 requests."""
    text = f"{quantity(read.bytes, 'bytes')} ({read.bytes:,} bytes)"
    return text if read.requests is None else f"{text} in {count(read.requests, 'request')}"


def percent(share: float, digits: int = 2) -> str:
    """Return a share 0..1 as a percentage."""
    return f"{100 * share:.{digits}f} %"


def times(count: int, exact: bool) -> str:
    """Return a count: 1,234, or ≤ 1,234 if it is an upper bound."""
    return f"{count:,}" if exact else f"≤ {count:,}"


def error(value: float, digits: int = 2) -> str:
    """Return the standard error of a percentage; empty if there is none."""
    return f" ±{100 * value:.{digits}f}" if value > 0 else ""


def facts(title: str, rows: Iterable[tuple[str, str | Text]]) -> Group:
    """Return a heading with facts below it, names on the left."""
    return Group(Text(title, "bold"), named(rows))  # a table's own title would wrap at its width


def named(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Return facts, names on the left."""
    table = Table(
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Group:
    """Return a table with a heading; columns named ">..." are right-aligned numbers.

    Numbers never wrap: if there is too little room, column names and texts wrap.
    """
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    return Group(Text(title, "bold"), _Grid(columns, cells))


class _Grid:
    """A table that wraps its column names and then narrows its gaps, only if it is too wide."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
        self._columns, self._rows = columns, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update_width(_UNBOUNDED)
        table = self._table(gap=2, names=_whole)
        if Measurement.get(console, unbounded, table).maximum > options.max_width:
            for gap, names in ((2, _at_words), (1, _at_words), (0, _at_words), (0, _anywhere)):
                table = self._table(gap=gap, names=names)
                if Measurement.get(console, unbounded, table).minimum <= options.max_width:
                    break
        yield table

    def _table(self, *, gap: int, names: Callable[[str, int], str]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            header_style="cyan",
            pad_edge=False,
            padding=(0, gap // 2, 0, (gap + 1) // 2),
        )
        for place, column in enumerate(self._columns):
            name = column.lstrip(">")
            if name == column:
                table.add_column(name, overflow="fold")
                continue
            widest = max((row[place].cell_len for row in self._rows), default=0)
            table.add_column(names(name, widest), justify="right", no_wrap=True, min_width=widest)
        for row in self._rows:
            table.add_row(*row)
        return table


def _whole(name: str, width: int) -> str:
    return name


def _at_words(name: str, width: int) -> str:
    """Return a name wrapped to `width`, or to its longest word."""
    return _anywhere(name, max(width, *map(len, name.split()))) if name.split() else name


def _anywhere(name: str, width: int) -> str:
    """Return a name wrapped to `width`, at least three letters."""
    return "\n".join(textwrap.wrap(name, max(width, 3)))


class PlainConsole(Console):
    """Writes texts as they are: no markup, no emoji codes, nothing that acts on the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Return the segments of a renderable; everything that is printed passes here."""
        return clean_segments(super().render(renderable, options))


def make_bars(console: Console) -> Progress:
    """Return progress bars on `console` that vanish when the work ends."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Amount(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=True,
    )


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        # Without a unit nothing is counted.
        return Text(done_of(task.completed, task.total, unit) if unit else "")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{quantity(speed, task.fields['unit'])}/s")

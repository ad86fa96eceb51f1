"""Figures, facts and tables as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

_STEPS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def quantity(value: float, unit: str) -> str:
    """A number with its unit: bytes as 31.5 MB, others as 8.2 Mtokens."""
    for step, letter in _STEPS:
        if value >= step:
            text = f"{value / step:.1f} {letter}"
            return f"{text}B" if unit == "bytes" else f"{text} {unit}".replace(" ", "\u00a0")
    return f"{value:.0f} B" if unit == "bytes" else f"{value:.0f} {unit}"


def short_digest(digest: str) -> str:
    """The first half of a digest: enough to tell two apart; --json has all of it."""
    return f"{digest[:39]}..." if len(digest) > 42 else digest


def count(number: int, noun: str) -> str:
    """A number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float, digits: int = 2) -> str:
    """A share 0..1 as a percentage."""
    return f"{100 * share:.{digits}f} %"


def facts(title: str, rows: Iterable[tuple[str, str | Text]]) -> Group:
    """A heading and facts under it, names on the left."""
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
    return Group(Text(title, "bold"), table)  # a table's own title would wrap at its width


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Group:
    """A table with a heading; columns whose name starts with ">" are flush right."""
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="cyan",
        pad_edge=False,
    )
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return Group(Text(title, "bold"), table)

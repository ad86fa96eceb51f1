"""Tables of numbers, and figures: a drawing wide and narrow, its legend and its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from engram_cli.report.markup import Html, tag

WIDE, NARROW, HALF = 760, 360, 400


class Drawing(Protocol):
    """What can be drawn at any width."""

    @property
    def name(self) -> str:
        """An id unique in the page."""

    def draw(self, width: int) -> Html:
        """The SVG, `width` pixels wide."""


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str | None = None
) -> Html:
    """A table; columns whose name starts with ">" hold numbers and are flush right."""
    right = [name.startswith(">") for name in columns]
    head = [
        tag("th", name.lstrip(">"), scope="col", class_="num" if number else None)
        for name, number in zip(columns, right, strict=True)
    ]
    body = [
        tag("tr", *[
            tag("td", cell, class_="num" if number else None)
            for cell, number in zip(row, right, strict=True)
        ])
        for row in rows
    ]  # fmt: skip
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", tag("tr", *head)),
            tag("tbody", *body),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or "table",
    )


def numbers_of(what: str, own: Html) -> Html:
    """A table that opens on demand."""
    return tag("details", tag("summary", f"Numbers: {what}"), own)


def figure(
    drawing: Drawing, caption: str, *, keys: Html | None = None, note: str | None = None,
    numbers: Html | None = None, half: bool = False,
) -> Html:  # fmt: skip
    """A drawing with its caption. `half`: one of several beside one another."""
    if half:
        drawn = [tag("div", drawing.draw(HALF), class_="any")]
    else:
        drawn = [
            tag("div", drawing.draw(WIDE), class_="wide"),
            tag("div", drawing.draw(NARROW), class_="narrow"),
        ]
    return tag(
        "figure",
        tag("figcaption", tag("b", caption), tag("span", note) if note else None),
        keys,
        *drawn,
        numbers,
        id=drawing.name,
    )


def row(*figures: Html) -> Html:
    """Figures beside one another where there is room."""
    return tag("div", *figures, class_="row") if len(figures) > 1 else figures[0]


def tiles(*entries: tuple[str, str, str]) -> Html:
    """Key numbers: (value, what it is, what it is held against)."""
    return tag(
        "dl",
        *[
            tag("div", tag("dt", what), tag("dd", value), tag("dd", beside, class_="beside"))
            for value, what, beside in entries
        ],
        class_="tiles",
    )

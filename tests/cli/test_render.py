"""What people read: titles as wide as the terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from engram_cli.cli.render import facts, grid


def shown(part: RenderableType, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width)
    with console.capture() as captured:
        console.print(part)
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [80, 100])
def test_titles_wrap_at_the_terminal_not_at_the_table(width: int) -> None:
    title = "'Apple' is compressed id 1234, key 'apple', and so are these other tokens"
    assert shown(grid(title, (">id", "text"), [("1", "a")]), width)[0] == title
    assert shown(facts(title, [("a", "b")]), width)[:2] == [title, "a  b"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_numbers_are_never_broken(width: int) -> None:
    names = (">order", ">distinct n-grams", ">most hits of a row", "as text")
    number = "100,003,456"
    lines = shown(grid("t", names, [("2", number, number, "a text of many words " * 4)]), width)
    assert sum(line.count(number) for line in lines) == 2
    assert max(map(len, lines)) <= width
    wide = shown(grid("t", names, [("2", number, number, "a")]), 100)
    assert any(all(name.lstrip(">") in line for name in names) for line in wide)

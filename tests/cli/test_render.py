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

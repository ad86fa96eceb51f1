"""docs/reference/sources.md lists every argument that takes a Hub id or an address."""

from __future__ import annotations

from cli import address_table


def test_the_page_is_of_now() -> None:
    text = address_table.PAGE.read_text(encoding="utf-8")
    assert address_table.page() == text, "run python tests/cli/address_table.py"


def test_no_command_is_forgotten() -> None:
    rows = {line.split("`")[1] for line in address_table.table().splitlines()[2:]}
    names = set(address_table.callbacks())
    assert names - rows <= {"demo", "patch list", "patch undo"}

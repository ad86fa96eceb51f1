"""Which arguments of which commands take a Hub id or an address, and the page that says so.

    python tests/cli/address_table.py

writes the table into docs/reference/sources.md. test_address_table.py fails while it is another.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it is run as a program
from all_commands import callbacks

from engram_cli.commands.requests.options import Option, declared

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sources.md"
BEGIN, END = (
    "<!-- arguments: written by tests/cli/address_table.py -->",
    "<!-- end of arguments -->",
)


def table() -> str:
    """Return the table: a row for each command, and its arguments by how they are read."""
    columns = ("read in ranges", "read as a stream", "copied", "written", "--revision is of")
    lines = [f"| command | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, callback in callbacks().items():
        found: dict[str, list[str]] = {"ranges": [], "stream": [], "copy": [], "writes": []}
        revised = ""
        typed = {each.name: _typed(each.name, each.option) for each in declared(callback.request)}
        for each in declared(callback.request):
            if each.option.reads is not None:
                found[each.option.reads].append(typed[each.name])
            if each.option.writes:
                found["writes"].append(typed[each.name])
            if each.option.revises is not None:
                revised = typed[each.option.revises]
        if any(found.values()):
            cells = [", ".join(own) for own in found.values()]
            lines.append(f"| `{name}` | {' | '.join((*cells, revised))} |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |")


def _typed(name: str, option: Option) -> str:
    shown = name.replace("_", "-")
    return f"`{shown.upper()}`" if option.argument else f"`--{shown}`"


def page() -> str:
    """Return the text of the page with the table of now."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(table() + "\n")

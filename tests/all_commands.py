"""All commands of the command line by name, those of groups too: "diff", "patch apply"."""

from __future__ import annotations

from typing import Any

import typer.main

from engram_cli.cli.app import app


def callbacks() -> dict[str, Any]:
    """The function of each command, in the order of the help."""
    found = {str(each.name): each.callback for each in app.registered_commands}
    for group in app.registered_groups:
        inner: Any = group.typer_instance
        name = inner.info.name
        found |= {f"{name} {each.name}": each.callback for each in inner.registered_commands}
    return found


def clicked() -> dict[str, Any]:
    """Each command as Click has it."""
    root: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {n}": c for n, c in inner.items()}
    return found

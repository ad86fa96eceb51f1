"""engram.toml and the command line: defaults from the one, and which of both said what.

A choice is made, in this order, by a flag; by what a flag names (a preset, a plan, an artifact); by
engram.toml; by the command.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.workspace import Workspace, read_config
from engram_cli.errors import InputError

LAYOUT_NAMES = frozenset(field.name for field in fields(Geometry))


def load_config(context: typer.Context, folder: Path) -> Path:
    """Take the folder's engram.toml as the defaults of this command's options; flags win.

    Runs before the other options are read. Keys are option names with - or _.
    """
    from engram_cli.cli.terminal import reported

    with reported():
        path = Workspace(folder).config
        parameters = _parameters(context)
        commands = set(getattr(getattr(context.parent, "command", None), "commands", ()))
        defaults: dict[str, Any] = {}
        for table, choices in read_config(path).items():
            if table not in {"layout", context.info_name, *commands}:
                raise InputError(f"{path}: unknown table [{table}]", "give [layout] or a command")
            if table not in ("layout", context.info_name):
                continue
            known = LAYOUT_NAMES if table == "layout" else parameters
            for key, value in choices.items():
                name = key.replace("-", "_")
                if name not in known:
                    raise InputError(f"{path}: [{table}] has no option '{key}'", _named(known))
                option = _as_option(value)
                if isinstance(option, str) and "\0" in option:
                    raise InputError(f"{path}: '{key}' holds a NUL character", "fix the line")
                if name in parameters:
                    defaults[parameters[name]] = option
    context.default_map = defaults
    return folder


def in_config(context: Any, parameter: str) -> bool:
    """Return whether the value of a parameter came from engram.toml."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "DEFAULT_MAP"


def unless_in_config(context: typer.Context, name: str) -> Any:
    """Return the value of a parameter, or None if it came from engram.toml."""
    return None if in_config(context, name) else context.params[name]


def layout_choices(context: typer.Context, only_flags: Collection[str] = ()) -> Geometry:
    """The layout options of a command; of `only_flags`, what engram.toml says does not count."""
    return Geometry(
        **{
            name: unless_in_config(context, name) if name in only_flags else context.params[name]
            for name in LAYOUT_NAMES
        }
    )


def _parameters(context: typer.Context) -> dict[str, str]:
    """Return the command's parameters by option name, with - written as _."""
    found = {}
    for parameter in context.command.params:
        for option in parameter.opts:
            found[option.lstrip("-").replace("-", "_")] = str(parameter.name)
    return found


def _as_option(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(str(entry) for entry in value)
    return value if isinstance(value, bool) else str(value)


def _named(names: Iterable[str]) -> str:
    return f"it has {', '.join(sorted(name.replace('_', '-') for name in names if len(name) > 1))}"

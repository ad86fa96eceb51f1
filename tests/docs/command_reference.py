"""Writes docs/reference/commands/ from the commands themselves.

    python tests/docs/command_reference.py

A page for each command, with every argument and option, and a page that lists the commands.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo, OptionInfo

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it is run as a program
from all_commands import callbacks

FOLDER = Path(__file__).parents[2] / "docs" / "reference" / "commands"
NOTE = "<!-- Written by `python tests/docs/command_reference.py`; do not edit. -->"
SHARED = {"as_json", "quiet", "verbose", "debug", "workspace"}
GENERAL = "In every command"


@dataclass(frozen=True)
class Parameter:
    """An argument or option as the page shows it; `text` is its help with the default."""

    names: tuple[str, ...]
    usage: str
    section: str
    text: str
    required: bool


def commands() -> dict[str, Any]:
    """Return the function of each command by the command's name, in the order of the help."""
    return callbacks()


def file_of(name: str) -> str:
    """Return the name of a command's page."""
    return f"{name.replace(' ', '-')}.md"


def parameters(callback: Any) -> Iterator[Parameter]:
    """Yield what a command takes, in the order of its help."""
    for each in inspect.signature(callback).parameters.values():
        kind, *marks = get_args(each.annotation) or (each.annotation,)
        for mark in marks:
            if isinstance(mark, OptionInfo | ArgumentInfo):
                yield _parameter(each, kind, mark)


def _parameter(each: inspect.Parameter, kind: Any, mark: OptionInfo | ArgumentInfo) -> Parameter:
    required = each.default is inspect.Parameter.empty
    help_text = (mark.help or "").replace("\\[", "[")
    if isinstance(mark, ArgumentInfo):
        name = (mark.metavar or each.name).upper() + ("..." if _is_list(kind) else "")
        names, usage, section = (each.name,), f"`{name}`", "Arguments"
    else:
        # Where an option is Annotated, Typer finds its first name in the place of a default.
        first = (mark.default,) if isinstance(mark.default, str) else ()
        names = (*first, *(mark.param_decls or ())) or (f"--{each.name.replace('_', '-')}",)
        section = GENERAL if each.name in SHARED else mark.rich_help_panel or "Options"
        value = "" if bool in (kind, *get_args(kind)) else f" {_value(each.name, kind, mark)}"
        flags = [name for name in names if name.startswith("--")]
        short = [f"`{name}`" for name in names if name not in flags]
        usage = ", ".join([f"`{flags[0].replace('/', '` / `')}{value}`", *short])
        names = tuple(part for name in names for part in name.split("/"))
    text = _coded(help_text) + _default(each, mark, required)
    return Parameter(names, usage, section, text, required)


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is list


def _value(name: str, kind: Any, mark: OptionInfo) -> str:
    if mark.metavar:
        return mark.metavar
    types = {kind, *get_args(kind)}
    for known, shown in ((Path, "PATH"), (int, "N"), (float, "X")):
        if known in types:
            return shown
    return name.upper().replace("_", "-")


def _default(each: inspect.Parameter, mark: OptionInfo | ArgumentInfo, required: bool) -> str:
    if required:
        return " Required."
    default = each.default
    if default is None or default is False or default == () or mark.show_default is False:
        return ""
    if default is True:
        return " On by default."
    return f" Default: `{default}`."


def page_of(name: str, callback: Any) -> str:
    """Return the page of a command, as Markdown."""
    found = list(parameters(callback))
    arguments = [each.usage.strip("`") for each in found if each.section == "Arguments"]
    needed = [each.usage.strip("`") for each in found if each.required and each.names[0][:1] == "-"]
    words = inspect.cleandoc(callback.__doc__ or "").replace("\\[", "[")
    usage = " ".join(["engram", name, *arguments, *needed, "[OPTIONS]"])
    lines = [f"# engram {name}", "", NOTE, "", *_coded(words).splitlines(), "", f"`{usage}`"]
    sections = dict.fromkeys(each.section for each in found if each.section != GENERAL)
    for section in [*sorted(sections, key=lambda s: s != "Arguments"), GENERAL]:
        lines += ["", f"## {section}", ""]
        for each in found:
            if each.section == section:
                lines += [f"- {each.usage}<br>{each.text}"]
    return "\n".join(lines) + "\n"


def _coded(words: str) -> str:
    """Return a text with its options as code."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", words)


def index() -> str:
    """Return the page that lists the commands."""
    lines = ["# Commands", "", NOTE, "", "`engram COMMAND --help` prints the same.", ""]
    lines += ["| command | what it does |", "| --- | --- |"]
    for name, callback in commands().items():
        first = inspect.cleandoc(callback.__doc__ or "").splitlines()[0]
        lines += [f"| [{name}]({file_of(name)}) | {first} |"]
    lines += [
        "",
        "Options that you choose often can stand in engram.toml, and exit codes have a meaning"
        " ([settings](../settings.md)).",
    ]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Return every page of the reference by its file name."""
    return {"index.md": index()} | {
        file_of(name): page_of(name, callback) for name, callback in commands().items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in set(FOLDER.glob("*.md")) - {FOLDER / name for name in pages()}:
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

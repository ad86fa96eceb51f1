"""The same options are in every command where they make sense, and mean the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from all_commands import callbacks, clicked

from engram_cli.commands.requests.options import declared

COMMANDS: Any = clicked()
PATCHING = [name for name in COMMANDS if name.startswith("patch ") and name != "patch make"]
NAMES = sorted(COMMANDS)
# Where an option is not, and why.
WITHOUT = {
    "--workspace": {"demo": "its argument is the folder"}
    | dict.fromkeys(PATCHING, "its arguments are the files"),
    "--force": {
        "demo": "replaces its own folder",
        "doctor": "writes nothing",
        "train": "a run is resumed, or goes to another folder",
        "verify": "writes nothing",
        "explore": "writes nothing",
        "patch list": "writes nothing",
        "patch show": "writes nothing",
        "patch undo": "writes no output",
    },
    "--tokenizer": {
        "compress-vocab": "its argument is the tokenizer",
        "demo": "has its own",
        "doctor": "reads no text",
        "plan": "reads no text",
        "report": "reads no text",
        "patch apply": "reads tables and bundles alone",
        "patch list": "reads tables and bundles alone",
        "patch undo": "reads tables and bundles alone",
    },
    "--dry-run": {
        name: "writes no rows"
        for name in NAMES
        if name not in ("attach", "build-table", "convert", "train", "update")
    },
}


def options(command: str) -> set[str]:
    return {option for parameter in COMMANDS[command].params for option in parameter.opts}


@pytest.mark.parametrize("command", NAMES)
def test_every_command_has_them(command: str) -> None:
    assert {"--json", "--quiet", "-q", "--verbose", "-v", "--debug"} <= options(command)
    for option, reasons in WITHOUT.items():
        assert (option in options(command)) == (command not in reasons), option


@pytest.mark.parametrize("command", NAMES)
def test_what_goes_with_what(command: str) -> None:
    """A repository has a revision, an output --force, a short name everywhere where it is long."""
    found = options(command)
    request: Any = callbacks()[command].request
    read = [each for each in declared(request) if each.option.reads in ("ranges", "copy")]
    if any(each.option.argument and each.type in (Path, Path | None) for each in read):
        assert "--revision" in found
    assert ("-o" in found) == ("--out" in found)
    assert ("-w" in found) == ("--workspace" in found)
    if {"--out", "--report", "--vectors"} & found and command != "train":
        assert "--force" in found


def test_one_name_has_one_kind_of_value() -> None:
    kinds: dict[str, set[str]] = {}
    for callback in callbacks().values():
        for each in declared(callback.request):
            if not each.option.argument:
                kind = str(each.type).replace(" | None", "").replace("<class '", "").rstrip("'>")
                kinds.setdefault(each.name, set()).add(kind)
    several = {name for name, found in kinds.items() if len(found) > 1}
    # Rows are read, converted or trained; a check asks, or names a file to compare with; an adapter
    # is evaluated by its folder, and trained by its rank; a disk has a size, or is looked at; rows
    # go to a format, and counts to a folder; a patch is written, or several are evaluated. The
    # other two are one kind.
    assert several == {"rows", "check", "lora", "disk", "to", "patch", "workspace", "corpus"}

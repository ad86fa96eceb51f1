"""Options that say more than their letters."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from engram_cli.cli.app import app
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.options import unescape
from engram_cli.commands.requests.plan import Budget, PlanRequest
from engram_cli.commands.requests.tables import BuildTableRequest

ALL = typer.main.get_command(app).commands
GROUPS = {name: command for name, command in ALL.items() if hasattr(command, "commands")}
COMMANDS = {name: command for name, command in ALL.items() if name not in GROUPS} | {
    f"{name} {part}": command
    for name, group in GROUPS.items()
    for part, command in group.commands.items()
}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n\x1e", "\n\x1e"),
        (r"a\tb\\n", "a\tb\\n"),
        (r"\q \x1 \xZZ", r"\q \x1 \xZZ"),
        ("\n\x1e", "\n\x1e"),
    ],
)
def test_what_is_written_out_is_what_is_meant(typed: str, meant: str) -> None:
    assert unescape(typed) == meant


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_says_its_default(name: str) -> None:
    for parameter in COMMANDS[name].params:
        flag = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
        if parameter.required or flag:  # a flag is off until it is given
            continue
        text = getattr(parameter, "help", None) or ""
        assert parameter.show_default or "(" in text, f"{name}: {parameter.opts}: {text!r}"
        if parameter.show_default == "none":
            assert parameter.default is None


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_the_options_of_a_terminal(name: str) -> None:
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    assert flags >= {"--json", "--quiet", "-q", "--verbose", "-v", "--debug"}


@pytest.mark.parametrize(
    ("short", "full"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_short_names_of_dtypes_are_understood(short: str, full: str) -> None:
    assert BuildTableRequest(dtype=short).dtype == full
    assert ConvertRequest(source=Path("x"), out=Path("y"), dtype=short).dtype == full
    assert PlanRequest(budget=Budget(memory=10**9), dtype=short).dtype == full

"""engram golden: writes golden vectors, and prints what is wrong with another program's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.reading import GoldenRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.golden.command import GoldenCheck, GoldenResult

_SHOWN = 4  # explanations


@command(GoldenRequest)
def golden(request: GoldenRequest, terminal: Terminal) -> None:
    """Write test vectors for a port of Engram, or find the fault in the vectors of one.

    --out writes ids, compressed ids, rows and values for cases that catch common faults. --check
    compares another program's, tries known faults, and names the one that explains its numbers.
    The exit code of --check is 0 if all is equal, or 1.
    """
    from engram_cli.commands.golden.command import golden as run

    result = run(request, terminal)
    terminal.result(result, *golden_parts(result))
    if result.check is not None and not result.check.equal:
        raise typer.Exit(1)


def golden_parts(result: GoldenResult) -> list[RenderableType]:
    """Return what was written, or what was found, for people."""
    from engram_cli.cli.render import facts, short_digest

    rows = [
        ("source", shown_path(result.source)),
        ("scheme", f"{result.scheme}, layers {', '.join(map(str, result.layers))}"),
        ("fingerprint", short_digest(result.fingerprint)),
        ("vectors", "none" if result.dtype is None else result.dtype),
    ]
    if result.out is not None:
        rows += [("cases", ", ".join(result.cases)), ("written", shown_path(result.out))]
    parts: list[RenderableType] = [facts("Golden vectors", rows)]
    return parts if result.check is None else parts + _check_parts(result.check)


def _check_parts(check: GoldenCheck) -> list[RenderableType]:
    from rich.text import Text

    from engram_cli.cli.render import grid

    lines = [(step.name, step.result, step.found, step.expected) for step in check.steps]
    parts: list[RenderableType] = [
        Text(),
        grid(
            f"{shown_path(check.theirs)} compared with ours",
            ("step", "result", "theirs", "ours"),
            lines,
        ),
    ]
    if check.equal:
        parts.append(Text("all is equal", "green"))
        return parts
    parts.append(Text(f"first step that differs: {check.first}", "bold red"))
    parts += [Text(f"  {text}") for text in check.explanations[:_SHOWN]]
    if len(check.explanations) > _SHOWN:
        parts.append(Text(f"  and {len(check.explanations) - _SHOWN} more (--json lists them)"))
    if check.rows_equal < check.rows and check.closest is not None:
        share = f"{check.closest_equal:,} of {check.rows:,} rows are equal"
        parts.append(Text(f"  no known fault explains the rows; closest: {share} {check.closest}"))
    elif not check.explanations:
        parts.append(Text("  no known fault explains these numbers"))
    return parts

"""engram verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.options import (
    JsonOption,
    QuietOption,
    ThreadsOption,
    VocabOption,
    WorkspaceOption,
)
from engram_cli.cli.terminal import Terminal, reported, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.verify import VerifyResult


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            help="Table, bundle, vocabulary or statistics to check.", show_default=False
        ),
    ],
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics that the counts must match (those next to the artifact)."),
    ] = None,
    vocab: VocabOption = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer that a vocabulary was made from (found automatically)."),
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Check an artifact: its checksums, its layout, and its counts against the statistics.

    Exits with 0 if everything is right, or lists what is wrong and exits with 1.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.verify import VerifyRequest
        from engram_cli.commands.verify import verify as run

        request = VerifyRequest(
            path=path,
            stats=stats,
            vocab=vocab,
            tokenizer=tokenizer,
            folder=workspace,
            threads=threads,
        )
        result = run(request, terminal)
        terminal.result(result, *verify_parts(result))
        for line in result.not_checked:
            terminal.note(f"not checked: {line}")
        if not result.ok:
            raise typer.Exit(1)


def verify_parts(result: VerifyResult) -> list[RenderableType]:
    """Return one line if everything is right, else the list of what is wrong."""
    from rich.text import Text

    from engram_cli.cli.render import count, quantity

    size = quantity(result.stored_bytes, "bytes")
    name = f"{shown_path(result.path)}: {result.kind}, {count(result.files, 'file')}, {size}"
    if result.ok:
        return [
            Text.assemble((name, ""), (": all right", "green"), f" ({', '.join(result.checked)})")
        ]
    wrong = count(len(result.problems), "thing")
    lines = [Text.assemble((name, ""), (f": {wrong} wrong", "bold red"))]
    lines += [Text(f"  {problem}") for problem in result.problems]
    return list(lines)

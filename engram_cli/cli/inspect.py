"""engram inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engram_cli.cli.options import (
    ForceOption,
    JsonOption,
    QuietOption,
    VocabOption,
    WorkspaceOption,
)
from engram_cli.cli.terminal import Terminal, reported


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="Table, bundle, vocabulary or statistics.", show_default=False),
    ],
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics with hits and n-grams; by default those beside."),
    ] = None,
    vocab: VocabOption = None,
    hottest: Annotated[
        int, typer.Option(min=0, max=10, help="Hottest rows to list of each order.")
    ] = 5,
    rows: Annotated[
        bool, typer.Option("--rows/--no-rows", help="Read the rows, or only what describes them.")
    ] = True,
    report: Annotated[
        Path | None,
        typer.Option(help="Draw it all as one HTML page that opens offline: page.html"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (one a core).")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Say what an artifact is, what it must match, and what its rows hold.

    Rows are read once, in constant memory: norms, zero rows, hits, the hottest, and twins.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.cli.inspect_tables import inspect_parts
        from engram_cli.commands.inspect import InspectRequest
        from engram_cli.commands.inspect import inspect as run

        request = InspectRequest(
            path=path,
            stats=stats,
            vocab=vocab,
            hottest=hottest,
            rows=rows,
            report=report,
            force=force,
            folder=workspace,
            threads=threads,
        )
        result = run(request, terminal)
        terminal.result(result, *inspect_parts(result))

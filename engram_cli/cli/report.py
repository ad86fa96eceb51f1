"""engram report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engram_cli.cli.options import ForceOption, JsonOption, QuietOption, WorkspaceOption
from engram_cli.cli.terminal import Terminal, reported, shown_path


def report(
    stats: Annotated[
        Path | None,
        typer.Argument(help="Statistics folder to read (engram-stats).", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page to write (report.html).")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Write the statistics of a corpus as one HTML page that opens offline."""
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.cli.render import facts, quantity
        from engram_cli.commands.report import ReportRequest
        from engram_cli.commands.report import report as run
        from engram_cli.commands.workspace import Workspace

        here = Workspace(workspace)
        request = ReportRequest(
            stats=stats or here.stats, out=out or here.folder / "report.html", force=force
        )
        result = run(request, terminal)
        rows = [
            ("statistics", shown_path(result.stats)),
            ("tokens", f"{result.tokens:,}"),
            ("written", f"{shown_path(result.out)}, {quantity(result.bytes, 'bytes')}"),
        ]
        terminal.result(result, facts("Report", rows))

"""engram diff."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.diff import DiffRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.diff.result import DiffResult


@command(DiffRequest)
def diff(request: DiffRequest, terminal: Terminal) -> None:
    """Compare the rows of two artifacts of one layout, and name the n-grams of the changed rows.

    A patch or overlay in the place of an artifact stands for the other artifact under that patch.

    Rows of other dtypes that differ by no more than the codec's error are not changed.

    The n-grams come from the statistics next to the artifacts, or from one pass over a corpus.

    The exit code is 0 if nothing changed, 1 if rows changed, 2 for what cannot be compared.
    """
    from engram_cli.cli.render import count
    from engram_cli.commands.diff.command import diff as run

    result = run(request, terminal)
    terminal.result(result, *diff_parts(result, verbose=terminal.verbose))
    if result.report is not None:
        terminal.note(f"written: {shown_path(result.report)}")
    if result.patch is not None:
        before, out = shown_path(result.before.path), shown_path(result.patch)
        terminal.note(f"written: {out} ({count(result.patch_rows, 'row')})")
        terminal.note(f"next: engram patch apply {before} {out}")
    if not result.same:
        raise typer.Exit(1)


def diff_parts(result: DiffResult, *, verbose: bool = False) -> list[RenderableType]:
    """Return what was compared, what was found, and the tables of its views."""
    from engram_cli.cli.render import facts, quantity
    from engram_cli.cli.views import printed
    from engram_cli.commands.diff.page import described_side, diff_views, sentences

    size = result.compared_bytes
    pace = quantity(size / max(result.compare_seconds, 1e-9), "bytes")
    lines = [
        (name, described_side(side, shown_path(side.path)))
        for name, side in (("before", result.before), ("after", result.after))
    ]
    part = " around the rows of patches" if size < result.before.bytes + result.after.bytes else ""
    lines.append(("compared", f"{quantity(size, 'bytes')} of rows{part}, {pace}/s"))
    if result.named_by is not None:
        lines.append(("n-grams", f"from {result.named_by}"))
    lines += [("" if at else "result", line) for at, line in enumerate(sentences(result))]
    return [
        facts("Comparison", lines),
        *printed(diff_views(result, more="with --ngrams"), verbose=verbose),
    ]

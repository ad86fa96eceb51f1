"""Prints what a table knows: the results of the probe as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.cli.render import facts, grid, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.probe import ProbeResult


def probe_parts(result: ProbeResult) -> list[RenderableType]:
    """Return the probed positions, and one line for each model."""
    known = ", ".join(f"{percent(share, 1)} of the {n}-grams" for n, share in result.known.items())
    lines = [
        ("probed", f"{result.positions:,} positions of {result.heldout_tokens:,} held-out tokens"),
        ("fitted on", f"{result.fitted:,} other positions"),
        ("corpus", f"{result.corpus_tokens:,} tokens; it contains {known}"),
        ("of the exact", f"{percent(result.of_exact, 1)} of the longest back-off's top-1"),
    ]
    rows = [
        (
            row.model,
            percent(row.top1, 1),
            "" if row.perplexity is None else f"{row.perplexity:,.1f}",
        )
        for row in result.rows
    ]
    columns = ("model", ">top-1", ">perplexity")
    return [facts("Probe", lines), grid("Next token", columns, rows)]

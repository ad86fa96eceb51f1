"""engram update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.update import UpdateTableRequest
from engram_cli.numbers import counted, seconds_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.update.result import DocumentCount, UpdateTableResult


@command(UpdateTableRequest)
def update(request: UpdateTableRequest, terminal: Terminal) -> None:
    """Add documents to a table, or remove documents from it, exactly.

    The table then has the digest of a build from the corpus with or without them. A table of
    build-table --keep-sums needs the documents alone; any other needs its whole corpus.

    In place unless --out is given. The same command completes an update that was interrupted.
    """
    from engram_cli.commands.update.command import run_update as run

    run(request, terminal, lambda result: terminal.result(result, *update_parts(result)))


def update_parts(result: UpdateTableResult) -> list[RenderableType]:
    """Return the printed parts: the documents, the rows, and where the table is."""
    from engram_cli.cli.render import facts, quantity, short_digest

    lines = []
    for name, count in (("added", result.added), ("removed", result.removed)):
        if count is not None:
            lines.append((name, _documents(count)))
    lines.append(("afterwards", f"{result.documents:,} documents, {result.tokens:,} tokens"))
    lines += _row_lines(result)
    if result.sums_bytes:
        lines.append(("kept sums", f"{quantity(result.sums_bytes, 'bytes')} on disk"))
    if result.already:
        lines.append(("updated already", "the run before this one was killed late"))
    elif result.completed:
        lines.append(("completed", "an update with these documents that was interrupted"))
    if result.written:
        lines.append(("took", seconds_text(result.seconds)))
        lines.append(("digest before", short_digest(result.digest_before)))
        lines.append(("digest", short_digest(result.digest)))
        lines.append(("written", shown_path(result.out)))
        if result.patch is not None:
            held = f"{counted(result.patch_rows, 'row')}, those whose bytes changed"
            lines.append(("patch", f"{shown_path(result.patch)}: {held}"))
    else:
        lines.append(("written", "nothing, this is a dry run"))
    return [facts("Update", lines)]


def _documents(count: DocumentCount) -> str:
    return f"{counted(count.documents, 'document')}, {counted(count.tokens, 'token')}"


def _row_lines(result: UpdateTableResult) -> list[tuple[str, str]]:
    from engram_cli.cli.render import quantity

    if result.refilled:
        return [("rows", f"all {result.rows:,} filled again from the corpus")]
    if result.touched_rows is None or result.written_rows is None:
        return []
    share = 100 * result.touched_rows / result.rows
    lines = [("rows touched", f"{result.touched_rows:,} of {result.rows:,}, {share:.3g} %")]
    size = quantity(result.written_rows * result.row_bytes, "bytes")
    why = ""
    if result.written_rows > result.touched_rows:
        why = ": the mean over the corpus moves; build with --centre vocabulary to avoid it"
    lines.append(("rows written", f"{result.written_rows:,}, {size}{why}"))
    return lines

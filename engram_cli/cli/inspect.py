"""engram inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.corpus_options import (
    EncoderOption,
    EndIdOption,
    ErrorsOption,
    FieldOption,
    FormatOption,
    IdsTypeOption,
    SeparatorOption,
    SuffixesOption,
    TokenizerOption,
    corpus_choices,
)
from engram_cli.cli.options import (
    ForceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    VocabOption,
    WorkspaceOption,
)
from engram_cli.cli.terminal import Terminal, reported, shown_path
from engram_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from engram_cli.commands.inspect import InspectResult
    from engram_cli.commands.probe import ProbeResult

_PROBE = "What a next-token table knows"


def inspect(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            help="Table, bundle, vocabulary or statistics to inspect.", show_default=False
        ),
    ],
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics with hits and n-grams (those next to the artifact)."),
    ] = None,
    vocab: VocabOption = None,
    hottest: Annotated[
        int, typer.Option(min=0, max=10, help="Number of hottest rows to list per order.")
    ] = 5,
    rows: Annotated[
        bool, typer.Option("--rows/--no-rows", help="Read the rows, or only their metadata.")
    ] = True,
    report: Annotated[
        Path | None,
        typer.Option(help="Also write the results as one HTML page that opens offline: page.html"),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="Held-out text: measure how well the table alone predicts it, compared with exact "
            "n-gram counts. Can be repeated.",
            rich_help_panel=_PROBE,
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Corpus that filled the table; the exact n-grams are counted on it.",
            rich_help_panel=_PROBE,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Model whose embeddings fill the rows.", rich_help_panel=_PROBE),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Layer to probe (the first).", rich_help_panel=_PROBE)
    ] = None,
    positions: Annotated[
        int,
        typer.Option(min=40, help="Maximum number of positions to probe.", rich_help_panel=_PROBE),
    ] = 8000,
    format_: FormatOption = None,
    field: FieldOption = None,
    document_separator: SeparatorOption = None,
    document_end_id: EndIdOption = None,
    ids_dtype: IdsTypeOption = None,
    suffixes: SuffixesOption = None,
    errors: ErrorsOption = "strict",
    tokenizer: TokenizerOption = None,
    encoder: EncoderOption = "auto",
    threads: ThreadsOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show what an artifact is, what it must match, and what its rows hold.

    Rows are read once, in constant memory: norms, zero rows, hits, hottest and duplicate rows.
    With --probe, measure how well a table built with --init next-token predicts a text.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.inspect import InspectRequest
        from engram_cli.commands.inspect import inspect as run

        if (corpus or checkpoint is not None) and not probe:
            raise InputError("a corpus or a checkpoint, and no text", "give one with --probe")
        asked = None
        if probe:
            from engram_cli.commands.init_corpus import FillRequest
            from engram_cli.commands.probe import ProbeRequest
            from engram_cli.commands.workspace import Workspace
            from engram_cli.corpus.base import CorpusOptions

            if not corpus:
                raise InputError(
                    "--probe without a corpus", "give the one that filled the table with --corpus"
                )
            here = Workspace(workspace)
            asked = ProbeRequest(
                table=path,
                heldout=tuple(probe),
                fill=FillRequest(
                    sources=tuple(corpus),
                    corpus=CorpusOptions(**corpus_choices(context)),
                    workspace=here,
                    tokenizer=tokenizer,
                    encoder=encoder,
                    checkpoint=checkpoint,
                ),
                vocab=vocab or here.vocab,
                layer=layer,
                positions=positions,
                threads=threads,
            )
        request = InspectRequest(
            path=path,
            stats=stats,
            vocab=vocab,
            hottest=hottest,
            rows=rows,
            probe=asked,
            report=report,
            force=force,
            folder=workspace,
            threads=threads,
        )
        result = run(request, terminal)
        terminal.result(result, *_printed(result))


def _printed(result: InspectResult) -> list[RenderableType]:
    """Return what is known of the artifact, and the tables of its views."""
    from engram_cli.cli.render import facts, quantity
    from engram_cli.cli.views import printed
    from engram_cli.commands.inspect_page import inspection_views

    size = f"{quantity(result.stored_bytes, 'bytes')} ({result.stored_bytes:,} bytes)"
    lines: list[tuple[str, str | Text]] = [
        ("path", shown_path(result.path)),
        *result.facts,
        ("on disk", f"{size}, {result.files:,} files"),
    ]
    if result.stats is not None and result.kind != "statistics":
        lines.append(("statistics", shown_path(result.stats)))
    if result.read_bytes:
        pace = quantity(result.read_bytes / max(result.seconds, 1e-9), "bytes")
        lines.append(("read", f"{quantity(result.read_bytes, 'bytes')} of rows, {pace}/s"))
    if result.report is not None:
        lines.append(("report", shown_path(result.report)))
    views = {view.name: view for view in inspection_views(result)}
    # The page has the heads at its end, where they may be long.
    order = ("digests", "heads", "norms", "hottest", "duplicates")
    tables = printed(views[name] for name in order if name in views)
    return [facts(str(result.kind).capitalize(), lines), *tables, *probe_parts(result.probe)]


def probe_parts(result: ProbeResult | None) -> list[RenderableType]:
    """Return the probed positions and one line for each model; nothing without a probe."""
    if result is None:
        return []
    from engram_cli.cli.render import facts, percent
    from engram_cli.cli.views import printed
    from engram_cli.commands.inspect_page import probe_view

    known = ", ".join(f"{percent(share, 1)} of the {n}-grams" for n, share in result.known.items())
    lines: list[tuple[str, str | Text]] = [
        ("probed", f"{result.positions:,} positions of {result.heldout_tokens:,} held-out tokens"),
        ("fitted on", f"{result.fitted:,} other positions"),
        ("corpus", f"{result.corpus_tokens:,} tokens; it contains {known}"),
        ("of the exact", f"{percent(result.of_exact, 1)} of the longest back-off's top-1"),
    ]
    return [facts("Probe", lines), *printed([probe_view(result)])]

"""engram inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from engram_cli.cli.terminal import Terminal, reported
from engram_cli.errors import InputError

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
        from engram_cli.cli.inspect_tables import inspect_parts
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
        terminal.result(result, *inspect_parts(result))

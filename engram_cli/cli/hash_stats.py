"""engram hash-stats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.cli.configured import LAYOUT_NAMES, layout_choices
from engram_cli.cli.corpus_options import (
    EncoderOption,
    EndIdOption,
    ErrorsOption,
    FieldOption,
    FormatOption,
    IdsTypeOption,
    JoinOption,
    SeparatorOption,
    SuffixesOption,
    TokenizerOption,
    corpus_choices,
)
from engram_cli.cli.options import (
    ENGINE_PANEL,
    EosIdOption,
    ForceOption,
    HeadsOption,
    JsonOption,
    LayersOption,
    OrdersOption,
    PadIdOption,
    PresetOption,
    QuietOption,
    RayAddressOption,
    RowsOption,
    SchemeOption,
    SeedOption,
    VocabOption,
    VocabSizeOption,
    WorkspaceOption,
    parse_size,
)
from engram_cli.cli.paths import refuse_address
from engram_cli.cli.terminal import Terminal, follow, reported, shown_path
from engram_cli.cli.views import printed
from engram_cli.malloc import bound_arenas

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.hash_stats import HashStatsResult
    from engram_cli.commands.merge_stats import MergeStatsResult
    from engram_cli.stats.statistic import Results

_OF_MERGING = frozenset(
    (
        *("sources", "merge", "vocab", "out", "force", "workspace", "ngrams", "report"),
        *("as_json", "quiet"),
    )
)


def hash_stats(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs or addresses to read; - reads standard input. "
            "With --merge, statistics folders.",
            show_default=False,
        ),
    ],
    preset: PresetOption = None,
    scheme: SchemeOption = None,
    orders: OrdersOption = None,
    heads: HeadsOption = None,
    rows_per_head: RowsOption = None,
    layers: LayersOption = None,
    pad_id: PadIdOption = None,
    seed: SeedOption = None,
    vocab_size: VocabSizeOption = None,
    eos_id: EosIdOption = None,
    format_: FormatOption = None,
    field: FieldOption = None,
    document_separator: SeparatorOption = None,
    document_end_id: EndIdOption = None,
    ids_dtype: IdsTypeOption = None,
    suffixes: SuffixesOption = None,
    errors: ErrorsOption = "strict",
    join_documents: JoinOption = False,
    tokenizer: TokenizerOption = None,
    encoder: EncoderOption = "auto",
    sample_size: Annotated[
        Any,
        typer.Option(
            parser=parse_size, metavar="SIZE", help="N-grams to sample per order (256Ki)."
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Merge the statistics folders in SOURCES into one."),
    ] = False,
    ngrams: Annotated[
        bool,
        typer.Option(
            "--ngrams", help="Show frequent n-grams, and frequent n-grams that share a row."
        ),
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Count every distinct n-gram exactly, if memory allows.")
    ] = False,
    compare_uncompressed: Annotated[
        bool,
        typer.Option(
            "--compare-uncompressed", help="Also hash raw token ids, and compare the two."
        ),
    ] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Show how n-grams overlap between groups of documents: file, folder, or a field.",
            metavar="WHAT",
        ),
    ] = None,
    locality: Annotated[
        bool,
        typer.Option(
            "--locality", help="Measure how unevenly rows are used, and the hit rates of caches."
        ),
    ] = False,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Hold out this share of the corpus: look it up but do not count it, such as 0.1. "
            "Turns on --locality.",
            metavar="SHARE",
        ),
    ] = None,
    growth: Annotated[
        bool,
        typer.Option(
            "--growth/--no-growth",
            help="Measure how the number of distinct n-grams grows with the corpus.",
        ),
    ] = True,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Ignore the saved checkpoint and start over."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write the results as one HTML page that opens offline: report.html"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of counting threads (one per core; with ray, one per task).",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Where to count: local, or ray (each partition is a task on a Ray cluster).",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = "local",
    ray_address: RayAddressOption = None,
    partition_size: Annotated[
        Any,
        typer.Option(
            parser=parse_size,
            metavar="BYTES",
            help="Bytes per partition (256Mi). Windows, caches and joined documents start over in "
            "each partition.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None,
    vocab: VocabOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write (engram-stats).")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Hash a corpus: measure which rows it uses and how many n-grams share a row."""
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        bound_arenas()  # before the progress bar starts a second thread
        terminal.start("loading", None, "")
        if merge:
            _note_unmerged(terminal, context)
            _merge(terminal, sources, vocab, out, force, workspace, ngrams, report)
            return
        from engram_cli.commands.hash_stats import HashStatsRequest
        from engram_cli.commands.hash_stats import hash_stats as run
        from engram_cli.commands.presets import with_preset
        from engram_cli.commands.workspace import Workspace

        geometry = layout_choices(context, only_flags=() if preset is None else LAYOUT_NAMES)
        sizes = {"sample_size": sample_size, "partition_size": partition_size}
        chosen = {name: size for name, size in sizes.items() if size is not None}
        request = HashStatsRequest(
            sources=tuple(sources),
            geometry=with_preset(preset, geometry),
            workspace=Workspace(workspace),
            vocab=vocab,
            tokenizer=tokenizer,
            out=out,
            force=force,
            encoder=encoder,
            threads=threads,
            join_documents=join_documents,
            exact=exact,
            compare_uncompressed=compare_uncompressed,
            group_by=group_by,
            locality=locality,
            holdout=holdout,
            growth=growth,
            restart=restart,
            report=report,
            engine=engine,
            ray_address=ray_address,
            **corpus_choices(context),
            **chosen,
        )
        result = run(request, terminal)
        parts = [_summary(result), *printed(results_of(result).views(), asked=ngrams)]
        following = follow("engram build-table", workspace, stats=out)
        terminal.result(result, *parts, next_command=following)
        if report is not None:
            terminal.note(f"report: {shown_path(report)}")


def _note_unmerged(terminal: Terminal, context: typer.Context) -> None:
    """Print a note with the given options that merging does not use."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _OF_MERGING
        and (source := context.get_parameter_source(str(parameter.name))) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        have = "has" if len(given) == 1 else "have"
        terminal.note(
            f"{', '.join(given)} {have} no effect: merging uses the parts as they were counted"
        )


def _merge(
    terminal: Terminal,
    parts: list[str],
    vocab: Path | None,
    out: Path | None,
    force: bool,
    workspace: Path,
    ngrams: bool,
    report: Path | None,
) -> None:
    from engram_cli.cli.render import count, facts
    from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
    from engram_cli.commands.workspace import Workspace

    for part in parts:
        refuse_address(part, "sources")
    result = merge_stats(
        MergeStatsRequest(
            parts=tuple(map(Path, parts)),
            workspace=Workspace(workspace),
            vocab=vocab,
            out=out,
            force=force,
            report=report,
        ),
        terminal,
    )
    summary = [
        ("parts", ", ".join(shown_path(part) for part in result.parts)),
        ("corpus", f"{count(result.files, 'file')}, {count(result.documents, 'document')}"),
        ("tokens", f"{result.tokens:,}"),
        *held_out(result),
        ("scheme", f"{result.scheme}, layers {', '.join(map(str, result.layers))}"),
        ("written", shown_path(result.out)),
    ]
    terminal.result(
        result,
        facts("Merged statistics", summary),
        *printed(results_of(result).views(), asked=ngrams),
        next_command=follow("engram build-table", workspace, stats=out),
    )


def _summary(result: HashStatsResult) -> RenderableType:
    from engram_cli.cli.render import count, facts, quantity

    size = "" if result.bytes is None else f", {quantity(result.bytes, 'bytes')}"
    rate = quantity(result.tokens_per_second, "tokens")
    here = result.tokens - result.resumed_tokens
    now = f", {here:,} of them in this run," if result.resumed_tokens else ""
    rows = [
        ("corpus", f"{count(result.files, 'file')}{size}, {count(result.documents, 'document')}"),
        ("tokens", f"{result.tokens:,}{now} in {result.seconds:.1f} s, {rate}/s"),
        *held_out(result),
        ("encoder", result.encoder or "none: the corpus holds token ids"),
        ("scheme", f"{result.scheme}, layers {', '.join(map(str, result.layers))}"),
        ("written", shown_path(result.out)),
    ]
    return facts("Statistics", rows)


def results_of(result: HashStatsResult | MergeStatsResult) -> Results:
    """Return the results of all statistics, whose views are printed."""
    from engram_cli.stats.statistic import Results

    found = {"orders": result.orders, "columns": result.columns, **result.sections}
    return Results(tokens=result.tokens, documents=result.documents, found=found)


def held_out(result: HashStatsResult | MergeStatsResult) -> list[tuple[str, str]]:
    """Return the line about held-out tokens; [] if nothing was held out."""
    from engram_cli.stats.locality_view import LocalityResult

    locality = result.sections.get("locality")
    if not isinstance(locality, LocalityResult) or not locality.held_out_tokens:
        return []
    held = locality.held_out_tokens
    share = 100 * held / (held + result.tokens)
    said = f"{held:,} tokens ({share:.1f} %), looked up to measure hot rows, not counted;"
    return [("held out", f"{said} documents wholly inside them are not counted either")]

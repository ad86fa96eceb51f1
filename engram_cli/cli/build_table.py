"""engram build-table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.cli.configured import LAYOUT_NAMES, layout_choices, unless_in_config
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
    ChunkRowsOption,
    DryRunOption,
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
    ScaleOption,
    SchemeOption,
    SeedOption,
    ThreadsOption,
    VocabOption,
    VocabSizeOption,
    WorkspaceOption,
    parse_size,
)
from engram_cli.cli.terminal import Terminal, follow, reported, shown_path
from engram_cli.commands.geometry import Geometry
from engram_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.build_table import BuildTableResult
    from engram_cli.commands.init_corpus import FillPlan

_FILL = "Rows from a corpus"


def build_table(
    context: typer.Context,
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
    dim: Annotated[
        int | None,
        typer.Option(min=1, help="Values per row, the width of one head (64, or the preset's)."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Data type of the stored rows (bfloat16, or the plan's). Types: "
            "docs/reference/table-format.md."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Plan written by engram plan --out. Other options override it."),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            help="How rows start: normal or zeros; with --corpus, token-mean or next-token."
        ),
    ] = "normal",
    std: Annotated[
        float | None,
        typer.Option(help="Standard deviation of --init normal, or of random embeddings (0.02)."),
    ] = None,
    init_seed: Annotated[int | None, typer.Option(min=0, help="Seed of --init normal (0).")] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Files, folders, globs or addresses whose n-grams fill the rows. Can be repeated.",
            rich_help_panel=_FILL,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Model folder (safetensors) whose token embeddings fill the rows (random "
            "embeddings).",
            rich_help_panel=_FILL,
        ),
    ] = None,
    embedding_tensor: Annotated[
        str | None,
        typer.Option(
            help="Name of the embedding tensor in the checkpoint (found automatically).",
            rich_help_panel=_FILL,
        ),
    ] = None,
    embedding_seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seed of the random embeddings, or of the projections.",
            rich_help_panel=_FILL,
        ),
    ] = 0,
    memory: Annotated[
        Any,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            help="Memory limit, such as 4GB (half of the free memory; with ray, 2GB per task).",
            rich_help_panel=_FILL,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Where to compute rows from a corpus: local, or ray (tasks on a Ray cluster).",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = "local",
    ray_address: RayAddressOption = None,
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
    chunk_rows: ChunkRowsOption = None,
    scale: ScaleOption = None,
    threads: ThreadsOption = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics to take the geometry and row hits from (engram-stats)."),
    ] = None,
    vocab: VocabOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Table to write (engram-table.zarr).")
    ] = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Build a table of vectors as a Zarr store, or resume an interrupted build.

    The geometry comes from the statistics in the folder, if there are any. Options override it.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.build_table import BuildTableRequest
        from engram_cli.commands.build_table import build_table as run
        from engram_cli.commands.checkpoint import find_checkpoints
        from engram_cli.commands.init_corpus import FillRequest
        from engram_cli.commands.workspace import Workspace
        from engram_cli.corpus.base import CorpusOptions

        here = Workspace(workspace)
        if stats is not None and not stats.exists():
            raise InputError(f"statistics not found: {stats}", "run: engram hash-stats CORPUS")
        if vocab is not None and not vocab.exists():
            raise InputError(f"vocabulary not found: {vocab}", "run: engram compress-vocab")
        chosen = _chosen(context, preset, plan)
        if checkpoint is not None and not corpus:
            raise InputError(
                "--checkpoint without --corpus",
                "a checkpoint's embeddings are written into rows where a corpus says which",
            )
        fill = None
        if corpus:
            fill = FillRequest(
                sources=tuple(corpus),
                corpus=CorpusOptions(**corpus_choices(context, chosen.geometry.eos_id)),
                workspace=here,
                tokenizer=tokenizer,
                encoder=encoder,
                join_documents=join_documents,
                checkpoint=checkpoint,
                embedding_tensor=embedding_tensor,
                embedding_seed=embedding_seed,
                memory=memory,
                engine=engine,
                ray_address=ray_address,
            )
        request = BuildTableRequest(
            geometry=chosen.geometry,
            vocab=vocab or here.vocab,
            folder=workspace,
            stats=stats or here.stats,
            out=out or here.table,
            force=force,
            dim=chosen.dim or 64,
            dtype=chosen.dtype or "bfloat16",
            init=init,
            std=std,
            init_seed=init_seed,
            fill=fill,
            chunk_rows=chunk_rows,
            scale=scale,
            threads=threads,
            dry_run=dry_run,
            fingerprint=chosen.fingerprint,
        )
        result = run(request, terminal)
        following = None
        if result.written:
            found = find_checkpoints(workspace)
            name = f"{found[0].folder}/" if len(found) == 1 else "ckpt/"
            following = follow(f"engram attach {name}", workspace, table=out)
        terminal.result(result, *table_parts(result), next_command=following)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """The chosen geometry and row type; `fingerprint` is set when a plan is used unchanged."""

    geometry: Geometry
    dim: int | None
    dtype: str | None
    fingerprint: str | None = None


def _chosen(context: typer.Context, preset: str | None, plan: Path | None) -> _Chosen:
    """Return each choice from a flag, else the preset or the plan, else engram.toml."""
    from engram_cli.commands.plan_file import read_plan
    from engram_cli.commands.presets import find_preset, with_preset

    if preset is None and plan is None:
        named = context.params
        return _Chosen(geometry=layout_choices(context), dim=named["dim"], dtype=named["dtype"])
    if preset is not None and plan is not None:
        raise InputError("both --plan and --preset", "give one of them")
    flags = layout_choices(context, only_flags=LAYOUT_NAMES)
    dim, dtype = unless_in_config(context, "dim"), unless_in_config(context, "dtype")
    if preset is not None:
        geometry = with_preset(preset, flags)
        return _Chosen(geometry=geometry, dim=dim or find_preset(preset).dim, dtype=dtype)
    assert plan is not None
    planned = read_plan(plan)
    return _Chosen(
        geometry=replace(planned.geometry, **flags.given),
        dim=dim or planned.dim,
        dtype=dtype or planned.dtype,
        fingerprint=None if flags.given else planned.fingerprint,
    )


def table_parts(result: BuildTableResult) -> list[RenderableType]:
    """Return the printed parts: sizes, and where the table is."""
    from engram_cli.cli.render import facts, grid, quantity, short_digest

    plan = result.plan
    hits = "none" if plan.tokens is None else f"of {plan.tokens:,} tokens, stored with the rows"
    orders = ", ".join(map(str, plan.orders))
    lines = [
        ("scheme", f"{plan.scheme}, orders {orders}, {plan.heads} heads"),
        ("rows", f"{plan.rows:,} of {plan.dim} x {plan.dtype}, init {plan.init}"),
        ("row hits", hits),
        ("on disk", f"{quantity(plan.total_bytes, 'bytes')} ({plan.total_bytes:,} bytes)"),
        ("a token reads", f"{plan.token_rows:,} rows, {plan.token_bytes:,} bytes"),
    ]
    if plan.fill is not None:
        lines.insert(3, ("filled from", _filled(plan.fill)))
    if result.written:
        pace = quantity((plan.total_bytes - plan.done_bytes) / max(result.seconds, 1e-9), "bytes")
        lines.append(("took", f"{result.seconds:.1f} s, {pace}/s"))
        if result.resumed_chunks:
            lines.append(("resumed", f"{result.resumed_chunks:,} chunks were already written"))
        lines.append(("digest", short_digest(result.digest)))
        lines.append(("written", shown_path(plan.out)))
    else:
        free = quantity(plan.free_bytes, "bytes")
        lines.append(("fits", f"{'yes' if plan.fits else 'no'}: {free} free on the disk"))
        lines.append(("would write", shown_path(plan.out)))
        if result.in_the_way is not None:
            lines.append(("in the way", result.in_the_way))
    rows = [
        (
            f"{layer.layer}",
            f"{layer.rows:,}",
            f"{layer.row_bytes}",
            f"{layer.chunks:,}",
            quantity(layer.chunk_bytes, "bytes"),
            quantity(layer.hits_bytes, "bytes"),
            quantity(layer.total_bytes, "bytes"),
        )
        for layer in plan.layers
    ]
    names = (">layer", ">rows", ">bytes per row", ">chunks", ">chunk size", ">hits", ">total")
    return [facts("Table", lines), grid("Layers", names, rows)]


def _filled(fill: FillPlan) -> str:
    about = "about " if fill.guessed else ""
    within = f"{fill.memory_bytes:,} bytes"
    return f"{about}{fill.tokens:,} tokens, in {fill.some_passes} within {within}"

"""The requests of build-table and attach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from engram_cli.commands.geometry import LAYOUT_NAMES, Geometry, PresetName
from engram_cli.commands.requests.corpus import FILL, FillRequest
from engram_cli.commands.requests.options import (
    ONE_CHUNK_SIZE,
    TOKENIZER_FILES,
    WORKSPACE,
    ChunkRows,
    ChunkSize,
    DryRun,
    Force,
    Group,
    InnerChunkSize,
    ModelTokenizer,
    Option,
    Request,
    Rule,
    Scale,
    Threads,
    integers,
    revision_of,
)
from engram_cli.commands.workspace import Workspace
from engram_cli.rows import DTYPES

CORPUS_INITS = ("token-mean", "next-token")
DEFAULT_DIM, DEFAULT_DTYPE = 64, "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTableRequest(Request):
    """What table to build.

    A choice of `geometry` overrides that of `preset` or `plan`, and these override `stats`: a
    statistics folder, whose hits are stored with the rows if the geometry stays the same. If there
    is no such folder, the table has no hits, and the scheme and a checkpoint in `folder` decide
    what the other choices leave open; `folder` None looks for no checkpoint.

    `centre` and `keep_sums`: see `table.inits.corpus.filled.CorpusFill`. `dim`: values per row, of
    one head. `std` and `init_seed` are the init's; `fill` is the corpus
    of an init that needs one. `chunk_rows`, `chunk_size`: None for about 128 MiB per chunk.
    `inner_chunk_size`: bytes of the inner chunks in one, None for none. `scale`: for dtypes with
    one scale per layer; None computes it. `fingerprint`: the fingerprint that the layout must have.
    With `dry_run` nothing is written.
    """

    preset: PresetName = None
    geometry: Annotated[Geometry, Group(Geometry)] = field(default_factory=Geometry)
    dim: Annotated[
        int | None, Option("Values per row, the width of one head (64, or the preset's).", least=1)
    ] = None
    dtype: Annotated[
        str | None,
        Option(
            f"Data type of the stored rows: {DTYPES.choices()} ({DEFAULT_DTYPE}, or that of the "
            "preset or plan)."
        ),
    ] = None
    plan: Annotated[
        Path | None,
        Option("Plan written by engram plan --out. Other options override it.", reads="ranges"),
    ] = None
    init: Annotated[
        str,
        Option(
            "How rows start: normal or zeros; with --corpus, token-mean or next-token.",
            known="engram_cli.table.inits:INITS",
        ),
    ] = "normal"
    std: Annotated[
        float | None, Option("Standard deviation of --init normal, or of random embeddings (0.02).")
    ] = None
    init_seed: Annotated[int | None, Option("Seed of --init normal (0).", least=0)] = None
    fill: Annotated[FillRequest | None, Group(FillRequest)] = None
    centre: Annotated[
        str,
        Option(
            "What --init next-token centres rows on: the mean over the corpus, or over the "
            "vocabulary, which no document changes.",
            panel=FILL,
            known=("corpus", "vocabulary"),
        ),
    ] = "corpus"
    keep_sums: Annotated[
        bool,
        Option(
            "Keep the sums of all rows in the table, so that engram update adds and removes "
            "documents.",
            panel=FILL,
        ),
    ] = False
    chunk_rows: ChunkRows = None
    chunk_size: ChunkSize = None
    inner_chunk_size: InnerChunkSize = None
    scale: Scale = None
    threads: Threads = None
    stats: Annotated[
        Path | None,
        Option(
            "Statistics to take the geometry and row hits from (engram-stats).",
            place="stats",
            must_exist=("statistics", "run: engram hash-stats CORPUS"),
            reads="ranges",
        ),
    ] = None
    vocab: Annotated[
        Path,
        Option(
            "Compressed vocabulary (the one in the workspace).",
            place="vocab",
            must_exist=("vocabulary", "run: engram compress-vocab"),
            reads="ranges",
        ),
    ] = Workspace().vocab
    out: Annotated[
        Path,
        Option("Table to write (engram-table.zarr).", short="-o", place="table", writes=True),
    ] = Workspace().table
    dry_run: DryRun = False
    force: Force = False
    folder: Annotated[Path | None, WORKSPACE] = None
    fingerprint: str | None = None

    RULES = (
        ONE_CHUNK_SIZE,
        Rule(
            lambda request: request.preset is not None and request.plan is not None,
            "both --plan and --preset",
            "give one of them",
        ),
        Rule(
            lambda request: request.fill is not None and request.init not in CORPUS_INITS,
            "--init {0.init} does not use a corpus",
            f"give --init {' or '.join(CORPUS_INITS)}",
        ),
        Rule(
            lambda request: request.fill is None and request.init in CORPUS_INITS,
            "--init {0.init} without a corpus",
            "give one with --corpus",
        ),
        Rule(
            lambda request: request.fill is not None and request.init_seed is not None,
            "--init-seed does not apply to --init {0.init}",
            "give --embedding-seed",
        ),
        Rule(
            lambda request: request.centre != "corpus" and request.init != "next-token",
            "--centre {0.centre} does not apply to --init {0.init}",
            "leave it out, or give --init next-token",
        ),
        Rule(
            lambda request: request.keep_sums and request.fill is None,
            "--keep-sums without --corpus",
            "give the corpus that fills the rows, or leave it out",
        ),
        Rule(
            lambda request: (
                request.keep_sums and request.fill is not None and request.fill.engine != "local"
            ),
            "--keep-sums with --engine {0.fill.engine}",
            "leave one out: sums are kept by builds on this machine",
        ),
    )

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options that a preset or a plan decides."""
        if given["preset"] is None and given["plan"] is None:
            return frozenset()
        return LAYOUT_NAMES | {"dim", "dtype"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest(Request):
    """What to attach to what, and where the bundle goes.

    `out`: None writes to `engram` in the folder `into`, and `into` None is the checkpoint.
    `layers`: the layers of the table to attach. None attaches all layers of a table with one or
    two, and the two that suit the model best of a table with more. `at`: the decoder layers,
    counted from 0, that receive them, one for each layer; None lets `attach_layers.place_layers`
    choose.

    `tokenizer` is a tokenizer.json or a folder with one, None the checkpoint's. `module` None is
    that of the table's scheme. `seed` draws the random weights, `init_value` and `init_gate` say
    which are random (docs/reference/modules.md). `fit` is a text that the gates are fitted to, and
    without `init_gate` they then start even. With `reference` the bundle maps the files of
    the table or checkpoint instead of holding a copy. `stats`: hits to store instead of the
    source's own; a bundle that refers to a table takes the table's. With `dry_run` nothing is
    written.
    """

    checkpoint: Annotated[
        Path,
        Option(
            "Hugging Face checkpoint: a folder, org/name of the Hub, or an address.",
            argument=True,
            reads="ranges",
            files=(*TOKENIZER_FILES, "model.safetensors.index.json"),
        ),
    ]
    table: Annotated[
        Path,
        Option(
            "Table, bundle or checkpoint to attach (engram-table.zarr).",
            place="table",
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("checkpoint", "the checkpoint")] = None
    out: Annotated[
        Path | None,
        Option("Bundle folder to write (CHECKPOINT/engram).", short="-o", writes=True),
    ] = None
    into: Annotated[Path | None, Option("Write the bundle to DIR/engram.", metavar="DIR")] = None
    layers: Annotated[
        tuple[int, ...] | None,
        Option("Use only these layers of the table (all).", metavar="LAYER,...", parser=integers),
    ] = None
    at: Annotated[
        tuple[int, ...] | None,
        Option(
            "Decoder layers that receive them, counted from 0 (the layers with the same "
            "numbers, else the second and the middle one).",
            metavar="LAYER,...",
            parser=integers,
        ),
    ] = None
    tokenizer: ModelTokenizer = None
    module: Annotated[
        str | None,
        Option("Module: engram-v1, deepseek-v4.1 or qwen-ple (the one of the table's scheme)."),
    ] = None
    init_value: Annotated[
        str,
        Option(
            "How the value projection starts: zero, random, or auto (random in layers whose "
            "rows are all zero, else zero).",
            known=("auto", "zero", "random"),
        ),
    ] = "auto"
    init_gate: Annotated[
        str,
        Option(
            "How the gates start: random, or even (all near one half).", known=("random", "even")
        ),
    ] = "random"
    packed: Annotated[bool, Option("Keep documents that are packed into one sequence apart.")] = (
        False
    )
    reference: Annotated[
        bool,
        Option(
            "Refer to the table or checkpoint instead of copying its rows. They are not read then: "
            "engram verify finds damage in them."
        ),
    ] = False
    fit: Annotated[
        str | None,
        Option(
            "Run the model on this text for a few minutes, so that the rows help at once; best one "
            "that the table was not filled from (file, folder, glob or address).",
            reads="stream",
            metavar="TEXT",
        ),
    ] = None
    stats: Annotated[
        Path | None,
        Option(
            "Statistics of the same hash, whose row hits say which rows are hot (those of the "
            "table).",
            must_exist=("statistics", "run: engram hash-stats CORPUS"),
            reads="ranges",
        ),
    ] = None
    seed: Annotated[int, Option("Seed of the module's random weights.", least=0)] = 0
    threads: Threads = None
    dry_run: DryRun = False
    force: Force = False
    folder: Annotated[Path | None, WORKSPACE] = None

    RULES = (
        Rule(
            lambda request: request.out is not None and request.into is not None,
            "both --out and --into are given",
            "--into DIR is --out DIR/engram",
        ),
    )

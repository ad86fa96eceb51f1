"""The request of convert: which rows to write, as which dtype or format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
    Option,
    Request,
    Rule,
    Scale,
    Threads,
    integers,
    revision_of,
    row_range,
)
from engram_cli.commands.requests.shards import ShardOptions
from engram_cli.formats import TARGETS
from engram_cli.formats.shard_shape import ShardShape
from engram_cli.rows import DTYPES

PATCHED = ("deepseek-v4.1", "bundle", "engram-peft", "pleo", "plepatch")  # targets with --patch


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest(Request):
    """What to convert: a table to another dtype, or with `to` any source to another format.

    `to`: "table", "bundle" or a name in `TARGETS`; None is a table of another `dtype`. `dtype` None
    keeps the source's. `layers`: those of the source to convert, by its own numbers; None for all.
    `rows`: the first row and the one behind the last, for targets that hold some rows of a layer.
    `tokenizer`: of a source that lacks its token map. `patch`: the checkpoint that the files are to
    fit into. With `check` the result says what would change, and nothing is written.
    `scale`: the scale of every layer, for dtypes that have one for all rows; None to find it.
    `verify`: read the source's checksums first, so that damage is not passed on as sound; with `to`
    also what was written. `force` replaces what engram wrote at `out`; with `dry_run` nothing is
    written.
    """

    RULES = (
        ONE_CHUNK_SIZE,
        Rule(
            lambda r: r.to is None and r.dtype is None,
            "no --dtype is given",
            f"give --dtype {DTYPES.choices()}, or --to with a format",
        ),
        Rule(lambda r: r.out is None and not r.check, "no --out is given", "say where to write it"),
        Rule(
            lambda r: (
                r.to is None
                and bool(r.dialect or r.patch or r.check or r.tokenizer or r.layers or r.rows)
            ),
            "--dialect, --patch, --check, --tokenizer, --layers and --rows need --to",
            "give the format to write with --to",
        ),
        Rule(
            lambda r: r.patch is not None and r.to not in PATCHED,
            "--patch is for --to " + ", ".join(PATCHED),
            "leave it out",
        ),
        Rule(
            lambda r: r.dialect is not None and r.to != "gguf",
            "--dialect is for --to gguf",
            "leave it out",
        ),
        Rule(lambda r: r.check and r.to == "table", "--check is for files", "use --dry-run"),
    )

    source: Annotated[
        Path,
        Option(
            "Table, bundle or checkpoint to convert: a path, org/name of the Hugging Face Hub, or "
            "an address.",
            argument=True,
            name="table",
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("table", "the table or checkpoint")] = None
    dtype: Annotated[
        str | None,
        Option(
            f"Data type of the new rows: {DTYPES.choices()}; with --to gguf also q8_0 (with --to, "
            "the source's own)."
        ),
    ] = None
    out: Annotated[Path | None, Option("File or folder to write.", short="-o", writes=True)] = None
    to: Annotated[
        str | None, Option(f"Format to write: table, bundle, {TARGETS.choices()} (a table).")
    ] = None
    dialect: Annotated[
        str | None,
        Option(
            "With --to gguf: llama.cpp, ds4, 'upper case', tensors, side-car or qwen4exp (the "
            "file's own, else llama.cpp or qwen4exp)."
        ),
    ] = None
    layers: Annotated[
        tuple[int, ...] | None,
        Option(
            "Convert only these layers, by the numbers that inspect shows (all).",
            metavar="LAYER,...",
            parser=integers,
        ),
    ] = None
    rows: Annotated[
        tuple[int, int] | None,
        Option(
            "Convert only rows A to B-1, for formats that hold some rows of a table (all).",
            metavar="A:B",
            parser=row_range,
        ),
    ] = None
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer of a source that lacks its token map.", reads="ranges", files=TOKENIZER_FILES
        ),
    ] = None
    patch: Annotated[
        Path | None,
        Option(
            f"With --to {', '.join(PATCHED)}: the checkpoint that gets the rows.", reads="ranges"
        ),
    ] = None
    check: Annotated[
        bool, Option("Print what would change and write nothing; exit with 1 if anything would.")
    ] = False
    scale: Scale = None
    chunk_rows: ChunkRows = None
    chunk_size: ChunkSize = None
    inner_chunk_size: InnerChunkSize = None
    shape: Annotated[ShardShape | None, Group(ShardOptions)] = None
    threads: Threads = None
    verify: Annotated[
        bool,
        Option("Verify the source before writing anything, and with --to what was written."),
    ] = True
    dry_run: DryRun = False
    force: Force = False
    folder: Annotated[Path | None, WORKSPACE] = None

    @property
    def place(self) -> Path:
        """Where it is written."""
        assert self.out is not None  # a rule says so
        return self.out

"""convert: writes the rows of a finished table in another dtype; computes the size first."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engram_cli.commands.artifact import open_vectors, require_sound
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.options import located
from engram_cli.commands.size_estimate import LayerPlan, layer_plans
from engram_cli.commands.workspace import refusal
from engram_cli.errors import EngramError, InputError, OutputError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import require_agreement
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import HITS, RowSource
from engram_cli.rows.stored_as import kept_dtype, require_same_rows
from engram_cli.rows.views import some_layers
from engram_cli.sizes import processors
from engram_cli.table.attributes import is_table
from engram_cli.table.build import build_store, free_bytes, resumable_bytes
from engram_cli.table.convert import (
    Difference,
    RowsOfSource,
    compare_tables,
    conversion,
    is_conversion,
)
from engram_cli.table.places import TABLE, check_place, clear_place
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import TableStore, open_table


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPlan:
    """The arithmetic of a conversion: bytes before and after, of rows and of all that is stored.

    `done_bytes`: what a conversion that was interrupted has already.
    """

    source: Path
    out: Path
    source_dtype: str
    dtype: str
    dim: int
    layers: tuple[LayerPlan, ...]
    source_row_bytes: int
    source_bytes: int
    total_bytes: int
    done_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is still to be written."""
        return self.total_bytes - self.done_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What was converted, or after a dry run would be, and how far the rows moved.

    `resumed_chunks`: all of them where the table was finished and only the comparison missing.
    `copied`: whether rows were copied as they are stored, and then compared byte for byte.
    `in_the_way`: why the run itself would not write, after a dry run; None where it would.
    """

    plan: ConvertPlan
    written: bool
    in_the_way: str | None = None
    digest: str = ""
    resumed_chunks: int = 0
    seconds: float = 0.0
    differences: tuple[Difference, ...] = ()
    copied: bool = False


def convert_table(request: ConvertRequest, progress: Progress = SILENT) -> ConvertResult:
    """Write the rows of a table in another dtype, or resume an interrupted conversion.

    Where this very conversion is finished already, the rows are only compared. Raises InputError,
    ArtifactError for a source that is damaged, OutputError when something else is in the way, does
    not fit or cannot be written.
    """
    begin = time.perf_counter()
    request = located(request)
    if is_address(request.out):
        return at_address(
            convert_table, request, TABLE, progress, folder=request.folder, dry_run=request.dry_run,
            moved=lambda result, out: replace(result, plan=replace(result.plan, out=out)),
        )  # fmt: skip
    source, row_bytes = _open_source(request)
    spec = conversion(
        source,
        request.dtype or _kept(source),
        scale=request.scale,
        chunk_rows=request.chunk_rows,
        chunk_size=request.chunk_size,
        inner_size=request.inner_chunk_size,
        copy=request.to is not None and request.dtype is None,
    )
    if request.place.absolute() == request.source.absolute():
        raise OutputError(f"{request.place} is the table to convert", "give another --out")
    if not request.dry_run:
        clear_place(request.place)
    finished = None if request.force else _finished(spec, request.place)
    in_the_way = None
    if finished is None:
        place = partial(check_place, request.place, request.force, (request.source,))
        in_the_way = refusal(place, request.dry_run)
    plan = _plan(request, source, row_bytes, spec, finished)
    if request.dry_run:
        return ConvertResult(plan=plan, written=False, in_the_way=in_the_way)
    threads = request.threads or processors()
    if finished is None:
        resumed = _build(request, source, spec, plan, threads, progress)
        finished = open_table(request.place)
    else:
        resumed = sum(array.chunks for array in spec.row_arrays.values())
        progress.note(f"{request.place} is already converted: only comparing the rows")
    try:
        differences, copied = _compare(request, source, spec, finished, threads, progress)
    except KeyboardInterrupt:
        progress.note(
            f"{finished.path} is written, and its rows are not compared with the old ones"
        )
        raise
    return ConvertResult(
        plan=plan,
        written=True,
        digest=finished.digest,
        resumed_chunks=resumed,
        seconds=time.perf_counter() - begin,
        differences=differences,
        copied=copied,
    )


def _open_source(request: ConvertRequest) -> tuple[RowSource, int]:
    """Return the rows to convert, and the bytes of one of them."""
    if request.to not in (None, "table"):
        raise InputError(f"{request.to} is no table", "call convert, which writes any format")
    source, dim, dtype = open_vectors(request.source, request.tokenizer, request.shape)
    if request.rows is not None:
        raise InputError(
            "--rows leaves out rows that tokens look up, and a table has all of them",
            "leave it out; --layers chooses layers",
        )
    if request.to is not None:
        _require_hash(source, request)
    if request.layers is not None:
        source = some_layers(source, request.layers)
    return source, DTYPES.load(dtype).row_bytes(dim)


def _compare(
    request: ConvertRequest,
    source: RowSource,
    spec: TableSpec,
    table: TableStore,
    threads: int,
    progress: Progress,
) -> tuple[tuple[Difference, ...], bool]:
    """Return how far the rows moved, and whether they were compared as they are stored.

    Raises ArtifactError for copied rows that are not the same.
    """
    if request.to is not None:
        if not request.verify:
            return (), False
        if isinstance(spec.init, RowsOfSource) and spec.init.kept is not None:
            require_same_rows(source, table, spec.dtype, threads=threads, progress=progress)
            return (), True
    return compare_tables(source, table, threads=threads, progress=progress), False


def _kept(source: RowSource) -> str:
    """Return the dtype that keeps the rows of a source. Raises InputError where there is none."""
    kept = kept_dtype(source.dtype or "")
    if kept is None:
        raise InputError(
            f"{source.path} has rows of {source.dtype}, which a table does not hold bit for bit",
            "choose what to make of them with --dtype, such as float16, bfloat16 or float32",
        )
    return kept


def _require_hash(source: RowSource, request: ConvertRequest) -> None:
    """Raise InputError for a source whose rows no token finds, ArtifactError for one at odds."""
    if source.layout.vocab_digest == UNKNOWN_VOCABULARY:
        raise InputError(
            f"{source.path} has no token map, so that no token finds its row",
            "give the model's tokenizer with --tokenizer",
        )
    if request.verify:
        require_agreement(source, "--no-verify converts what is there")


def _build(
    request: ConvertRequest,
    source: RowSource,
    spec: TableSpec,
    plan: ConvertPlan,
    threads: int,
    progress: Progress,
) -> int:
    """Write the table; return how many of its row chunks were written before."""
    foreign = FORMATS.load(source.format).foreign
    if request.verify and not (foreign and request.to is not None):  # see `_require_hash`
        hint = "build it again; --no-verify converts what is there"
        require_sound(source, hint, threads=threads, progress=progress)
    if plan.done_bytes:
        progress.note(
            f"resuming an interrupted conversion: {plan.done_bytes:,} of {plan.total_bytes:,} "
            "bytes are already written"
        )
    report = build_store(
        spec,
        request.place,
        hits=lambda layer: source.lines(layer, HITS, 0, source.layout.layer(layer).rows),
        force=request.force,
        threads=threads,
        progress=progress,
    )
    return report.resumed


def _finished(spec: TableSpec, out: Path) -> TableStore | None:
    """Return the table at `out` if it is what the conversion `spec` would give."""
    if not is_table(out):
        return None
    try:
        table = open_table(out)
        return table if is_conversion(table, spec) else None
    except EngramError:
        return None


def _plan(
    request: ConvertRequest,
    source: RowSource,
    source_row_bytes: int,
    spec: TableSpec,
    finished: TableStore | None,
) -> ConvertPlan:
    rows = sum(source.layout.layer(layer).rows for layer in source.layers)
    return ConvertPlan(
        source=source.path,
        out=request.place,
        source_dtype=source.dtype or "",
        dtype=spec.dtype,
        dim=spec.dim,
        layers=layer_plans(spec),
        source_row_bytes=source_row_bytes,
        source_bytes=(
            sum(array.stored_bytes for array in source.arrays.values())
            if isinstance(source, TableStore)
            else rows * source_row_bytes
        ),
        total_bytes=spec.total_bytes,
        done_bytes=spec.total_bytes if finished else resumable_bytes(spec, request.place),
        free_bytes=free_bytes(request.place),
    )

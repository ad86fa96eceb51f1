"""build-table: a geometry or statistics in, a table store on disk out, bytes reckoned first."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.corpus_fill import (
    CORPUS_INITS,
    FillPlan,
    FillRequest,
    find_vectors,
    guess_tokens,
    write_tokens,
)
from engram_cli.commands.geometry import RAW_ID_SCHEMES, Geometry
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.progress import SILENT, Progress
from engram_cli.table.build import (
    build_store,
    check_place,
    check_space,
    free_bytes,
    partial_folder,
    resumable_bytes,
    scratch_folder,
)
from engram_cli.table.inits import INITS, make_init
from engram_cli.table.inits.base import Init
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.filled import CorpusFill
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.lock import build_lock
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.parquet import read_about

if TYPE_CHECKING:
    from engram_cli.stats.folder import Statistics

Filling: TypeAlias = tuple[TokenFile, Embeddings]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTableRequest:
    """What table to build.

    `stats`: a statistics folder whose geometry is taken where `geometry` leaves a choice open, and
    whose hits are stored beside the rows when the geometry stays the same; nothing is taken when
    there is no such folder. `dim`: values a row, of one head. `std` and `init_seed` are the init's;
    `fill` is the corpus of an init that needs one. `chunk_rows` None is about 128 MiB a chunk,
    `threads` None all processors. `scale` is
    for dtypes with one scale a layer, None finds it. `fingerprint`: what the layout's must be, of a
    plan. With `dry_run` nothing is written.
    """

    geometry: Geometry = field(default_factory=Geometry)
    vocab: Path = Workspace().vocab
    stats: Path | None = None
    out: Path = Workspace().table
    force: bool = False
    dim: int = 64
    dtype: str = "bfloat16"
    init: str = "normal"
    std: float | None = None
    init_seed: int | None = None
    fill: FillRequest | None = None
    chunk_rows: int | None = None
    scale: float | None = None
    threads: int | None = None
    dry_run: bool = False
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"{self.threads} threads", "give 1 or more")
        if self.fill is not None and self.init not in CORPUS_INITS:
            raise InputError(
                f"a corpus for --init {self.init}", f"give --init {' or '.join(CORPUS_INITS)}"
            )
        if self.fill is None and self.init in CORPUS_INITS:
            raise InputError(f"--init {self.init} without a corpus", "give one with --corpus")
        if self.fill is not None and self.init_seed is not None:
            raise InputError(f"init seed with --init {self.init}", "give --embedding-seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The bytes of a layer: rows in chunk files, the last one filled up, their scales, its hits.

    `row_bytes`: of a row with its scales. `chunk_bytes`: of a chunk of rows alone.
    """

    layer: int
    rows: int
    row_bytes: int
    chunks: int
    chunk_rows: int
    chunk_bytes: int
    scales_bytes: int
    hits_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything that is stored of the layer."""
        return self.chunks * self.chunk_bytes + self.scales_bytes + self.hits_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """The arithmetic of a table, before anything is written.

    `tokens`: over how many the hits were counted, None where there are no hits. `done_bytes`: what
    a half-built table of the same request has already. `token_rows`, `token_bytes`: what looking up
    one token reads, in all layers. `fill`: None for an init that needs no corpus.
    """

    out: Path
    scheme: str
    fingerprint: str
    orders: tuple[int, ...]
    heads: int
    dim: int
    dtype: str
    init: str
    layers: tuple[LayerPlan, ...]
    tokens: int | None
    lookup_bytes: int
    total_bytes: int
    done_bytes: int
    free_bytes: int
    fill: FillPlan | None = None

    @property
    def rows(self) -> int:
        """The rows of all layers."""
        return sum(layer.rows for layer in self.layers)

    @property
    def token_rows(self) -> int:
        """Rows read to look up one token."""
        return len(self.layers) * len(self.orders) * self.heads

    @property
    def token_bytes(self) -> int:
        """Bytes of rows read to look up one token."""
        return self.token_rows * self.layers[0].row_bytes

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is still to be written."""
        return self.total_bytes - self.done_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTableResult:
    """What was built, or after a dry run would be: then `written` is False and `digest` "".

    `resumed_chunks`: the chunks taken over from a build that was interrupted.
    """

    plan: TablePlan
    written: bool
    digest: str = ""
    resumed_chunks: int = 0
    seconds: float = 0.0


def plan_table(request: BuildTableRequest, progress: Progress = SILENT) -> TablePlan:
    """The byte arithmetic of `request`; writes nothing. Raises as `build_table` for its input."""
    layout, statistics = _agreed_layout(request, progress)
    filling = None
    if request.fill is not None:
        vectors = find_vectors(request.fill, request.init, layout, request.std)
        filling = guess_tokens(request.fill), vectors
    return _plan(_specify(request, layout, statistics, filling), request)


def build_table(request: BuildTableRequest, progress: Progress = SILENT) -> BuildTableResult:
    """Build the table, or go on with one that was interrupted.

    Raises InputError, LayoutError for choices that cannot be, MismatchError for statistics of
    another vocabulary or a foreign tokenizer, CorpusError, TokenIdError, OutputError when it
    exists, does not fit or cannot be written.
    """
    begin = time.perf_counter()
    if request.dry_run:
        return BuildTableResult(plan=plan_table(request, progress), written=False)
    check_place(request.out, request.force)
    layout, statistics = _agreed_layout(request, progress)
    with ExitStack() as stack:
        filling = None
        if request.fill is not None:
            stack.enter_context(build_lock(scratch_folder(request.out)))
            filling = _filling(request, request.fill, layout, statistics, progress)
        spec = _specify(request, layout, statistics, filling, progress)
        plan = _plan(spec, request)
        if plan.done_bytes:
            progress.note(
                f"going on with a half-built table: {plan.done_bytes:,} of {plan.total_bytes:,} "
                "bytes are there"
            )
        if plan.fill is not None:
            progress.note(str(plan.fill))
        report = build_store(
            spec,
            request.out,
            hits=None if statistics is None else partial(_hits, statistics),
            force=request.force,
            threads=request.threads or processors(),
            progress=progress,
        )
    return BuildTableResult(
        plan=plan,
        written=True,
        digest=report.digest,
        resumed_chunks=report.resumed,
        seconds=time.perf_counter() - begin,
    )


def _filling(
    request: BuildTableRequest,
    fill: FillRequest,
    layout: HashLayout,
    statistics: Statistics | None,
    progress: Progress,
) -> Filling:
    """The corpus as tokens and their vectors, after a look at whether there is room for a table."""
    vectors = find_vectors(fill, request.init, layout, request.std)
    if not partial_folder(request.out).exists():
        guess = guess_tokens(fill), vectors
        check_space(request.out, _specify(request, layout, statistics, guess))
    scratch = scratch_folder(request.out)
    tokens = write_tokens(fill, request.geometry, layout, request.vocab, scratch, progress)
    return tokens, vectors


def _specify(
    request: BuildTableRequest,
    layout: HashLayout,
    statistics: Statistics | None,
    filling: Filling | None,
    progress: Progress = SILENT,
) -> TableSpec:
    return TableSpec(
        layout=layout,
        dim=request.dim,
        dtype=request.dtype,
        init=_init(request, layout, filling, progress),
        chunk_rows=request.chunk_rows,
        tokens=None if statistics is None else statistics.tokens,
        scale=request.scale,
    )


def _init(
    request: BuildTableRequest, layout: HashLayout, filling: Filling | None, progress: Progress
) -> Init:
    if request.fill is None or filling is None:
        return make_init(request.init, std=request.std, seed=request.init_seed)
    file, vectors = filling
    return INITS.load(request.init)(
        layout=layout,
        file=file,
        embeddings=vectors,
        joined=request.fill.join_documents,
        memory=request.fill.memory_bytes,
        threads=request.threads or processors(),
        progress=progress,
    )


def _agreed_layout(
    request: BuildTableRequest, progress: Progress
) -> tuple[HashLayout, Statistics | None]:
    """`_layout`, which must be the one that was planned, where there is a plan."""
    layout, statistics = _layout(request, progress)
    if request.fingerprint not in (None, layout.fingerprint):
        raise MismatchError(
            f"the plan is of layout {short(request.fingerprint)}, this one is "
            f"{short(layout.fingerprint)}",
            "use the vocabulary that was planned with, or plan again",
        )
    return layout, statistics


def _layout(request: BuildTableRequest, progress: Progress) -> tuple[HashLayout, Statistics | None]:
    """The layout, and the statistics when they were counted with that very layout."""
    if request.stats is None or not request.stats.exists():
        return request.geometry.resolve(request.vocab), None
    from engram_cli.stats.folder import read_stats

    statistics = read_stats(request.stats)
    counted = statistics.layout
    _same_vocabulary(counted, request)
    wanted = request.geometry.over(counted)
    if wanted == Geometry.from_layout(counted):
        return counted, statistics
    layout = wanted.resolve(request.vocab)
    if layout.fingerprint == counted.fingerprint:
        return counted, statistics
    progress.note(
        f"the row hits in {request.stats} were counted with another geometry and are left out; "
        "run engram hash-stats with this one to have them"
    )
    return layout, None


def _same_vocabulary(counted: HashLayout, request: BuildTableRequest) -> None:
    """Raises MismatchError when the vocabulary is there and is not that of the statistics."""
    if counted.scheme in RAW_ID_SCHEMES or not request.vocab.is_file():
        return
    digest = read_about(request.vocab).get("vocab_digest")
    if digest != counted.vocab_digest:
        raise MismatchError(
            f"{request.stats} was counted with vocabulary {short(counted.vocab_digest)}, "
            f"{request.vocab} is {short(digest)}",
            "run engram hash-stats again, or leave the statistics out",
        )


def _hits(statistics: Statistics, layer: int) -> NDArray[np.uint32]:
    hits: NDArray[np.uint32] = statistics.hits(layer)
    if hits.shape != (statistics.layout.layer(layer).rows,) or hits.dtype != np.uint32:
        raise ArtifactError(
            f"the counters of layer {layer} are {hits.dtype} of shape {hits.shape}",
            "run engram hash-stats again",
        )
    return hits


def _plan(spec: TableSpec, request: BuildTableRequest) -> TablePlan:
    layout, out = spec.layout, request.out
    return TablePlan(
        out=out,
        scheme=layout.scheme,
        fingerprint=layout.fingerprint,
        orders=layout.orders,
        heads=layout.heads,
        dim=spec.dim,
        dtype=spec.dtype,
        init=spec.init.name,
        layers=layer_plans(spec),
        tokens=spec.tokens,
        lookup_bytes=0 if spec.lookup_array is None else spec.lookup_array.stored_bytes,
        total_bytes=spec.total_bytes,
        done_bytes=resumable_bytes(spec, out),
        free_bytes=free_bytes(out),
        fill=_fill_plan(spec.init, spec) if isinstance(spec.init, CorpusFill) else None,
    )


def _fill_plan(init: CorpusFill, spec: TableSpec) -> FillPlan:
    passes = 0
    for layer, array in spec.row_arrays.items():
        spans = [array.span(index) for index in range(array.chunks)]
        passes += len(init.passes(layer, spec.dim, spans))
    return FillPlan(
        tokens=init.file.tokens,
        guessed=not init.file.digest,
        passes=passes,
        memory_bytes=init.memory,
        scratch_bytes=init.scratch_bytes,
    )


def layer_plans(spec: TableSpec) -> tuple[LayerPlan, ...]:
    """The bytes of every layer of a table."""
    scales = spec.row_scale_arrays | spec.layer_scale_arrays
    return tuple(
        LayerPlan(
            layer=layer,
            rows=array.rows,
            row_bytes=spec.row_bytes,
            chunks=array.chunks,
            chunk_rows=array.chunk_rows,
            chunk_bytes=array.chunk_bytes,
            scales_bytes=scales[layer].stored_bytes if layer in scales else 0,
            hits_bytes=spec.hits_arrays[layer].stored_bytes if spec.hits_arrays else 0,
        )
        for layer, array in spec.row_arrays.items()
    )


def processors() -> int:
    """The processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

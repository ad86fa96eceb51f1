"""build-table: writes a table store from a geometry or statistics; computes its size first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.checkpoint import for_checkpoint
from engram_cli.commands.dry_run import refusal
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import (
    CORPUS_INITS,
    FillRequest,
    find_vectors,
    guess_tokens,
    write_tokens,
)
from engram_cli.commands.pad_token import note_pad
from engram_cli.commands.processors import processors
from engram_cli.commands.size_estimate import TablePlan, fill_plan, planned
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.sources import find_sources
from engram_cli.engines.base import ENGINES, Engine
from engram_cli.engines.filling import placed
from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.files import local_path
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.progress import SILENT, Progress
from engram_cli.table.build import build_store, check_space
from engram_cli.table.inits import INITS, make_init
from engram_cli.table.inits.base import Init
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.filled import CorpusFill
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.lock import build_lock
from engram_cli.table.places import check_place, clear_place, partial_folder, scratch_folder
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.parquet import read_about

if TYPE_CHECKING:
    from engram_cli.stats.stats_io import Statistics

Filling: TypeAlias = tuple[TokenFile, Embeddings]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTableRequest:
    """What table to build.

    `stats`: a statistics folder whose geometry is taken where `geometry` leaves a choice open, and
    whose hits are stored with the rows when the geometry stays the same; nothing is taken when
    there is no such folder. `folder`: where a checkpoint is looked for that decides what is open
    without statistics, None for nowhere. `dim`: values a row, of one head. `std` and `init_seed`
    are the init's; `fill` is the corpus of an init that needs one. `chunk_rows` None is about
    128 MiB a chunk, `threads` None all processors. `scale` is for dtypes with one scale a layer,
    None finds it. `fingerprint`: what the layout's must be, of a plan. With `dry_run` nothing is
    written.
    """

    geometry: Geometry = field(default_factory=Geometry)
    vocab: Path = Workspace().vocab
    folder: Path | None = None
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
        if self.init not in INITS:
            raise InputError(f"unknown init '{self.init}'", f"known: {', '.join(INITS)}")
        if self.fill is not None and self.init not in CORPUS_INITS:
            raise InputError(
                f"--init {self.init} does not use a corpus",
                f"give --init {' or '.join(CORPUS_INITS)}",
            )
        if self.fill is None and self.init in CORPUS_INITS:
            raise InputError(f"--init {self.init} without a corpus", "give one with --corpus")
        if self.fill is not None and self.init_seed is not None:
            raise InputError(
                f"--init-seed does not apply to --init {self.init}", "give --embedding-seed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTableResult:
    """What was built, or after a dry run would be: then `written` is False and `digest` "".

    `resumed_chunks`: the chunks taken over from a build that was interrupted. `in_the_way`: why the
    run itself would not write, after a dry run; None where it would.
    """

    plan: TablePlan
    written: bool
    in_the_way: str | None = None
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
    spec = _specify(request, layout, statistics, filling)
    known = request.fill is None or request.fill.engine == "local"
    return planned(spec, request.out, fill_plan(spec, known=known))


def build_table(request: BuildTableRequest, progress: Progress = SILENT) -> BuildTableResult:
    """Build the table, or go on with one that was interrupted.

    Raises InputError, LayoutError for choices that cannot be, MismatchError for statistics of
    another vocabulary or a foreign tokenizer, CorpusError, TokenIdError, OutputError when it
    exists, does not fit or cannot be written.
    """
    begin = time.perf_counter()
    request = replace(request, out=local_path(request.out))
    if request.dry_run:
        plan = plan_table(request, progress)
        place = partial(check_place, request.out, request.force, _inputs(request))
        in_the_way = refusal(place, dry_run=True)
        return BuildTableResult(plan=plan, written=False, in_the_way=in_the_way)
    clear_place(request.out)
    if os.path.lexists(request.out):
        plan_table(request)  # what is wrong with the options is told before what is in the way
    check_place(request.out, request.force, _inputs(request))
    layout, statistics = _agreed_layout(request, progress)
    with ExitStack() as stack:
        filling, engine = None, None
        if request.fill is not None:
            stack.enter_context(build_lock(scratch_folder(request.out), request.out))
            start = ENGINES.load(request.fill.engine)
            threads = request.threads or 1
            engine = stack.enter_context(start(request.fill.ray_address, threads, progress))
            filling = _filling(request, request.fill, layout, statistics, engine, progress)
        spec = _specify(request, layout, statistics, filling, progress)
        if engine is not None and isinstance(spec.init, CorpusFill):
            spec = replace(spec, init=placed(engine, spec.init, progress))
        plan = planned(spec, request.out, fill_plan(spec))
        if plan.done_bytes:
            progress.note(
                f"resuming an interrupted build: {plan.done_bytes:,} of {plan.total_bytes:,} bytes "
                "are already written"
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


def _inputs(request: BuildTableRequest) -> Iterator[str | Path | None]:
    """What is read: no output may be or hold it."""
    yield from (request.vocab, request.stats)
    if request.fill is not None:
        yield from (request.fill.checkpoint, request.fill.tokenizer)
        yield from find_sources(request.fill.sources, request.fill.corpus).places


def _filling(
    request: BuildTableRequest,
    fill: FillRequest,
    layout: HashLayout,
    statistics: Statistics | None,
    engine: Engine,
    progress: Progress,
) -> Filling:
    """The corpus as tokens and their vectors, after a look at whether there is room for a table."""
    vectors = find_vectors(fill, request.init, layout, request.std)
    if not partial_folder(request.out).exists():
        guess = guess_tokens(fill), vectors
        check_space(request.out, _specify(request, layout, statistics, guess))
    scratch = scratch_folder(request.out)
    tokens = write_tokens(fill, request.geometry, layout, request.vocab, scratch, progress, engine)
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
    note_pad(layout, request.vocab, progress)
    if request.fingerprint not in (None, layout.fingerprint):
        raise MismatchError(
            f"the plan is of layout {short(request.fingerprint)}, this one is "
            f"{short(layout.fingerprint)}",
            "use the vocabulary of the plan, or run engram plan again",
        )
    return layout, statistics


def _layout(request: BuildTableRequest, progress: Progress) -> tuple[HashLayout, Statistics | None]:
    """The layout, and the statistics when they were counted with that very layout."""
    if request.stats is None or not request.stats.exists():
        geometry = request.geometry
        if request.folder is not None:
            geometry = for_checkpoint(geometry, request.folder, request.vocab, progress)
        return geometry.resolve(request.vocab), None
    from engram_cli.stats.stats_io import read_stats

    statistics = read_stats(request.stats)
    counted = statistics.layout
    _same_vocabulary(counted, request)
    wanted = request.geometry.over(counted)
    same = wanted == Geometry.from_layout(counted)
    layout = counted if same else wanted.resolve(request.vocab)
    if layout.fingerprint == counted.fingerprint:
        layers = ", ".join(map(str, counted.layer_ids))
        least = min(counted.layers[0].moduli)
        progress.note(
            f"geometry and row hits: those of {request.stats}, layers {layers}, at least {least:,} "
            "rows a head"
        )
        return counted, statistics
    progress.note(
        f"the row hits in {request.stats} were counted with another geometry and are left out; "
        "to include hits, run engram hash-stats with this geometry"
    )
    return layout, None


def _same_vocabulary(counted: HashLayout, request: BuildTableRequest) -> None:
    """Raises MismatchError when the vocabulary is there and is not that of the statistics."""
    if takes_raw_ids(counted.scheme) or not request.vocab.is_file():
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

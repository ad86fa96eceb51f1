"""build-table: writes a table store from a geometry or statistics; computes its size first."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.checkpoint import for_checkpoint
from engram_cli.commands.corpus_tokenizer import note_layout
from engram_cli.commands.geometry import Geometry, find_preset, with_preset
from engram_cli.commands.init_corpus import find_vectors, guess_tokens, memory_of, write_tokens
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.plan.file import read_plan
from engram_cli.commands.requests.corpus import FillRequest
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.tables import DEFAULT_DIM, DEFAULT_DTYPE, BuildTableRequest
from engram_cli.commands.size_estimate import TablePlan, fill_plan, planned
from engram_cli.commands.workspace import refusal
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.engines.base import ENGINES
from engram_cli.engines.filling import on_chosen_engine
from engram_cli.errors import ArtifactError, MismatchError
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.progress import SILENT, Progress
from engram_cli.sizes import processors
from engram_cli.table.build import build_store, check_space
from engram_cli.table.inits import INITS, make_init
from engram_cli.table.inits.base import Init
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.filled import CorpusFill
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.lock import build_lock
from engram_cli.table.places import TABLE, check_place, clear_place, partial_folder, scratch_folder
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.parquet import read_about

if TYPE_CHECKING:
    from engram_cli.stats.stats_io import Statistics


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """What a request comes to, found once and passed down.

    `spec`: the table. An init that reads a corpus holds a guess of its tokens until the corpus was
    read. `statistics`: those whose hits are stored, None without. `sources`, `vectors`: the corpus
    of the rows and the vectors of its tokens, None for an init without a corpus.
    """

    spec: TableSpec
    statistics: Statistics | None
    sources: Sources | None
    vectors: Embeddings | None


def build_table(request: BuildTableRequest, progress: Progress = SILENT) -> BuildTableResult:
    """Build the table, or resume a build that was interrupted.

    Raises InputError, LayoutError for choices that cannot be, MismatchError for statistics of
    another vocabulary or a foreign tokenizer, CorpusError, TokenIdError, OutputError when it
    exists, does not fit or cannot be written.
    """
    if is_address(request.out):
        return at_address(
            build_table, request, TABLE, progress, folder=request.folder, moved=_moved,
            dry_run=request.dry_run,
        )  # fmt: skip
    begin = time.perf_counter()
    request = _chosen(located(request))
    if not request.dry_run:
        clear_place(request.out)
    # What is wrong with the options is reported before what is in the way of the output.
    found = _resolve(request, progress)
    place = partial(check_place, request.out, request.force, _inputs(request, found.sources))
    in_the_way = refusal(place, request.dry_run)
    if request.dry_run:
        local = request.fill is None or request.fill.engine == "local"
        plan = planned(found.spec, request.out, fill_plan(found.spec, known=local))
        return BuildTableResult(plan=plan, written=False, in_the_way=in_the_way)
    with ExitStack() as stack:
        spec = found.spec
        if request.fill is not None:
            spec = _filled(request, request.fill, found, stack, progress)
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
            hits=None if found.statistics is None else partial(_hits, found.statistics),
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


def _moved(result: BuildTableResult, out: Path) -> BuildTableResult:
    return replace(result, plan=replace(result.plan, out=out))


def _chosen(request: BuildTableRequest) -> BuildTableRequest:
    """Return the request with the choices of its preset or plan in place of their names."""
    geometry, dim, dtype = request.geometry, request.dim, request.dtype
    fingerprint = request.fingerprint
    if request.preset is not None:
        geometry = with_preset(request.preset, geometry)
        dim = dim or find_preset(request.preset).dim
    if request.plan is not None:
        plan = read_plan(request.plan)
        fingerprint = fingerprint or (None if geometry.given else plan.fingerprint)
        geometry = replace(plan.geometry, **geometry.given)
        dim, dtype = dim or plan.dim, dtype or plan.dtype
    fill = request.fill
    if fill is not None and fill.document_end_id is None:
        fill = replace(fill, document_end_id=geometry.eos_id)
    return replace(
        request,
        preset=None,
        plan=None,
        geometry=geometry,
        dim=dim,
        dtype=dtype,
        fill=fill,
        fingerprint=fingerprint,
    )


def _inputs(request: BuildTableRequest, sources: Sources | None) -> list[Path | None]:
    """Return what is read: no output may be or hold it."""
    read = [request.vocab, request.stats]
    if request.fill is not None and sources is not None:
        read += [request.fill.checkpoint, request.fill.tokenizer, *sources.places]
    return read


def _resolve(request: BuildTableRequest, progress: Progress) -> _Resolved:
    """Return the layout, the statistics, the corpus, its vectors, and the table they make."""
    layout, statistics = _layout(request, progress)
    note_layout(layout, request.vocab, progress)
    if request.fingerprint not in (None, layout.fingerprint):
        raise MismatchError(
            f"the plan is of layout {short(request.fingerprint)}, this one is "
            f"{short(layout.fingerprint)}",
            "use the vocabulary of the plan, or run engram plan again",
        )
    sources, vectors = None, None
    if request.fill is None:
        init = make_init(request.init, std=request.std, seed=request.init_seed)
    else:
        vectors = find_vectors(request.fill, request.init, layout, request.std)
        sources = find_sources(request.fill.sources, request.fill.corpus)
        init = _corpus_init(request, request.fill, layout, guess_tokens(sources), vectors, SILENT)
    spec = TableSpec(
        layout=layout,
        dim=request.dim or DEFAULT_DIM,
        dtype=request.dtype or DEFAULT_DTYPE,
        init=init,
        chunk_rows=request.chunk_rows,
        chunk_size=request.chunk_size,
        inner_size=request.inner_chunk_size,
        tokens=None if statistics is None else statistics.tokens,
        scale=request.scale,
    )
    return _Resolved(spec=spec, statistics=statistics, sources=sources, vectors=vectors)


def _corpus_init(
    request: BuildTableRequest,
    fill: FillRequest,
    layout: HashLayout,
    file: TokenFile,
    vectors: Embeddings,
    progress: Progress,
) -> Init:
    return INITS.load(request.init)(
        layout=layout,
        file=file,
        embeddings=vectors,
        joined=fill.join_documents,
        centre=request.centre,
        sums=partial_folder(request.out) if request.keep_sums else None,
        memory=memory_of(fill),
        threads=request.threads or processors(),
        progress=progress,
    )


def _filled(
    request: BuildTableRequest,
    fill: FillRequest,
    found: _Resolved,
    stack: ExitStack,
    progress: Progress,
) -> TableSpec:
    """Return the spec with the tokens of the corpus, which are written first if missing.

    Locks the scratch folder and starts the engine, both on `stack`.
    """
    sources, vectors = found.sources, found.vectors
    assert sources is not None
    assert vectors is not None
    stack.enter_context(build_lock(scratch_folder(request.out), request.out))
    start = ENGINES.load(fill.engine)
    threads = request.threads or (1 if fill.engine != "local" else processors())
    engine = stack.enter_context(start(fill.ray_address, threads, progress))
    if not partial_folder(request.out).exists():
        check_space(request.out, found.spec)
    file = write_tokens(
        fill,
        sources,
        request.geometry,
        found.spec.layout,
        request.vocab,
        scratch_folder(request.out),
        progress,
        engine,
    )
    init = _corpus_init(request, fill, found.spec.layout, file, vectors, progress)
    if isinstance(init, CorpusFill):
        init = on_chosen_engine(engine, init, progress)
    return replace(found.spec, init=init)


def _layout(request: BuildTableRequest, progress: Progress) -> tuple[HashLayout, Statistics | None]:
    """Return the layout, and the statistics if they were counted with this very layout."""
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
    """Raise MismatchError if the vocabulary is there and is not that of the statistics."""
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

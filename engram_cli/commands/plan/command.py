"""plan: a corpus, a budget and hardware in; a table's geometry and what is to be expected out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.commands.checkpoint import for_checkpoint
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.plan.corpus import SAME_SIZE, HotShare, PlanCorpus, read_corpus
from engram_cli.commands.plan.file import PLAN, PlannedTable, write_plan
from engram_cli.commands.plan.sizes import Alternative, alternatives, fit_layout
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.plan import PlanRequest
from engram_cli.commands.size_estimate import LayerPlan, layer_plans
from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.table.inits import make_init
from engram_cli.table.planning.batches import BatchShare
from engram_cli.table.planning.estimates import Demand, Expectation, expect
from engram_cli.table.planning.placement import Hardware, Load, Placement, placements
from engram_cli.table.spec import TableSpec

FAR = 1000.0  # times the tokens counted: from here on a plan says how uncertain it is


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """The table that is planned, what is expected of it, where it fits, and what else could be.

    `token_rows`, `token_bytes`: read to look up a token, in all layers. `layers` and `total_bytes`
    are those of the store that `build-table` will write. `counted_tokens`: behind the statistics.
    `hot` is empty where they say nothing of hot rows; `hot_bytes` is 0 where the hit rate is not
    reached in every order. `batch_share` is None if no cache was measured.
    """

    geometry: Geometry
    fingerprint: str
    dim: int
    dtype: str
    rows: int
    params: int
    row_bytes: int
    rows_bytes: int
    total_bytes: int
    layers: tuple[LayerPlan, ...]
    token_rows: int
    token_bytes: int
    tokens: int
    counted_tokens: int | None
    expected: tuple[Expectation, ...]
    hot: tuple[HotShare, ...]
    hit_rate: float
    hot_bytes: int
    batch: int
    batch_share: BatchShare | None
    hardware: Hardware
    placements: tuple[Placement, ...]
    alternatives: tuple[Alternative, ...]
    stats: Path | None
    out: Path | None = None

    @property
    def fits(self) -> bool:
        """Whether there is a way to place it."""
        return any(each.fits for each in self.placements)


def plan(request: PlanRequest, progress: Progress = SILENT) -> PlanResult:
    """Plan a table; reads statistics or a vocabulary, and writes no more than plan.json.

    Raises InputError, LayoutError for choices that cannot be, MismatchError for a vocabulary that
    is not that of the statistics, ArtifactError for damaged statistics, OutputError.
    """
    request = located(request)
    if request.out is not None:
        prepare_output(
            request.out, PLAN, force=request.force, inputs=(request.stats, request.vocab)
        )
    vocab = request.vocab or request.workspace.vocab
    corpus = read_corpus(request.stats, request.vocab, vocab, request.tokens, progress)
    if corpus.path is None:
        folder = request.workspace.folder
        request = replace(
            request, geometry=for_checkpoint(request.geometry, folder, vocab, progress)
        )
    spec = _spec(request, corpus, _layout(request, corpus))
    layout = spec.layout
    demands = corpus.demands(layout.orders)
    for note in _doubts(corpus, layout, demands):
        progress.note(note)
    hot = corpus.hot_sets(layout, request.hit_rate)
    batch = corpus.batch_share(layout, request.batch)
    load = _load(request, spec, hot, batch)
    result = PlanResult(
        geometry=Geometry.from_layout(layout),
        fingerprint=layout.fingerprint,
        dim=request.dim,
        dtype=request.dtype,
        rows=load.rows,
        params=load.rows * request.dim,
        row_bytes=load.row_bytes,
        rows_bytes=load.bytes,
        total_bytes=spec.total_bytes,
        layers=layer_plans(spec),
        token_rows=load.token_rows,
        token_bytes=load.token_rows * load.row_bytes,
        tokens=corpus.tokens,
        counted_tokens=corpus.counted_tokens,
        expected=_expected(layout, demands),
        hot=hot,
        hit_rate=request.hit_rate,
        hot_bytes=load.hot_bytes if load.hit_rate else 0,
        batch=request.batch,
        batch_share=batch,
        hardware=request.hardware,
        placements=tuple(placements(load, request.hardware)),
        alternatives=tuple(alternatives(layout, request.dim, request.dtype, load.bytes, demands)),
        stats=corpus.path,
        out=request.out,
    )
    if request.out is not None:
        _write(result, request.out, request.force)
    return result


def _load(
    request: PlanRequest, spec: TableSpec, hot: tuple[HotShare, ...], batch: BatchShare | None
) -> Load:
    """Return what is looked up, of which no placement builds on a part of the hot rows."""
    layout = spec.layout
    hot_sizes = [each.rows for each in hot if each.rows is not None]
    reached = 0 < len(hot) == len(hot_sizes)
    return Load(
        rows=sum(entry.rows for entry in layout.layers),
        row_bytes=spec.row_bytes,
        token_rows=len(layout.layers) * layout.columns,
        hot_rows=sum(hot_sizes) if reached else 0,
        hit_rate=request.hit_rate if reached else 0.0,
        distinct=1.0 if batch is None else batch.share,
        at_most=batch is None or batch.at_most,
    )


def _write(planned: PlanResult, out: Path, force: bool) -> None:
    table = PlannedTable(
        geometry=planned.geometry,
        dim=planned.dim,
        dtype=planned.dtype,
        fingerprint=planned.fingerprint,
        total_bytes=planned.total_bytes,
    )
    write_plan(table, out, force=force)


def _doubts(corpus: PlanCorpus, layout: HashLayout, demands: tuple[Demand, ...]) -> Iterator[str]:
    """Yield what a reader must know about the limits of the counts."""
    if corpus.counted_tokens is None:
        return
    if any(each.bound for each in demands):
        yield (
            f"no growth curve reaches {corpus.tokens:,} tokens: each further n-gram counts as "
            "new, a bound far too high; count more, without --no-growth"
        )
    elif corpus.factor > FAR:
        yield _far(corpus, demands)
    if not corpus.tells_hot_rows:
        yield (
            f"no hot rows: {corpus.counted_tokens:,} tokens counted do not say which rows "
            f"{corpus.tokens:,} heat; count about as many, or leave --tokens out"
        )
    elif corpus.size_factor(layout) > SAME_SIZE:
        sizes = Geometry.from_layout(layout).rows_per_head or ()
        yield (
            f"no hot rows: these heads have {corpus.size_factor(layout):.3g} times the rows of "
            "those that were counted, and need more of them; count with --rows-per-head "
            + ",".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
        )


def _far(corpus: PlanCorpus, demands: tuple[Demand, ...]) -> str:
    """Say how uncertain a plan is for a corpus so much larger than what was counted."""
    errors = ", ".join(
        f"{each.order}-grams {each.error / each.distinct:.0%}" for each in demands if each.distinct
    )
    return (
        f"{corpus.factor:,.0f} times the tokens counted: the curve was held against 4 to 10 times, "
        f"so these are orders of magnitude (standard error at least: {errors}); count more"
    )


def _layout(request: PlanRequest, corpus: PlanCorpus) -> HashLayout:
    """Return the layout that fits the budget, or the one of the geometry."""
    base = corpus.resolve(request.geometry)
    row_bytes = TableSpec(
        layout=base, dim=request.dim, dtype=request.dtype, init=make_init("zeros")
    ).row_bytes
    wanted = request.budget.rows(request.dim, row_bytes)
    if wanted is None:
        return base
    if request.geometry.rows_per_head is not None:
        raise InputError("a budget and --rows-per-head exclude each other", "give one of them")
    return fit_layout(base, wanted, lambda sizes: corpus.resolve(request.geometry, sizes))


def _spec(request: PlanRequest, corpus: PlanCorpus, layout: HashLayout) -> TableSpec:
    """Return the table as build-table will make it: with hits if they are of this layout."""
    return TableSpec(
        layout=layout,
        dim=request.dim,
        dtype=request.dtype,
        init=make_init("zeros"),
        tokens=corpus.hits_tokens(layout),
    )


def _expected(layout: HashLayout, demands: tuple[Demand, ...]) -> tuple[Expectation, ...]:
    """Return one for each order; a layer stands for all, whose moduli differ by few primes."""
    heads, moduli = layout.heads, layout.layers[0].moduli
    return tuple(
        expect(demand, moduli[at * heads : (at + 1) * heads]) for at, demand in enumerate(demands)
    )

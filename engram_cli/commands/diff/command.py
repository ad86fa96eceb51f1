"""diff: two artifacts of one layout in; the rows that changed and the n-grams they stand for out.

Rows are compared in blocks, by their bytes where both sides have one dtype. What is kept is one
byte a row, which says how much it changed. Then the n-grams are looked for whose rows changed in
all heads: in the statistics' sample, or in one pass over a corpus.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import VOCABULARY, Artifact, Companions, find_artifact
from engram_cli.commands.diff.ngrams import (
    ChangedRows,
    Found,
    described,
    from_corpus,
    from_sample,
)
from engram_cli.commands.diff.result import ColumnDiff, DiffResult, OrderNgrams, RowDiff, Side
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.commands.requests.options import located
from engram_cli.commands.text_reader import TextReader
from engram_cli.corpus.checks import needs_tokenizer, remarks
from engram_cli.corpus.encode import EncoderDiffers, check_encoder, make_encoder
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.errors import InputError
from engram_cli.hashing.layout import UNKNOWN_SCHEME, HashLayout, short
from engram_cli.outputs import prepare_output
from engram_cli.patches import Patch, write_patch
from engram_cli.patches.between import patch_between
from engram_cli.patches.patch_file import PATCH
from engram_cli.progress import SILENT, Progress
from engram_cli.report.place import check_page
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource
from engram_cli.sizes import processors
from engram_cli.stats.names import Names
from engram_cli.table.compare.levels import (
    LEAST,
    LEVELS,
    concentration,
    levels_of,
    norm_of,
    standing_out,
)
from engram_cli.table.compare.rows import LayerChanges, RowPair

_LISTED = 10  # most changed rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """Both artifacts, opened, and the tokenizer and vocabulary that go with them."""

    found: tuple[Artifact, Artifact]
    rows: tuple[RowSource, RowSource]
    companions: tuple[Companions, Companions]

    @property
    def layout(self) -> HashLayout:
        return self.rows[0].layout


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """The n-grams of the changed rows, and what named them; `by` None for nothing."""

    by: str | None = None
    exact: bool | None = None
    tokens: int | None = None
    ngrams: tuple[OrderNgrams, ...] = ()


def diff(request: DiffRequest, progress: Progress = SILENT) -> DiffResult:
    """Compare the rows of two artifacts of one layout; name the n-grams of those that changed.

    Raises InputError for artifacts that cannot be compared, CorpusError and TokenIdError naming the
    place in the corpus, MismatchError for a tokenizer of another vocabulary, ArtifactError for
    damage, OutputError where the page cannot be written.
    """
    request = located(request)
    if request.report is not None:
        inputs = (request.before, request.after, request.stats, request.vocab, request.tokenizer)
        check_page(request.report, request.force, option="--report", inputs=inputs)
    if request.patch is not None:
        prepare_output(
            request.patch,
            PATCH,
            force=request.force,
            option="--patch",
            inputs=(request.before, request.after),
        )
    begin = time.perf_counter()
    check_encoder(request.encoder)
    opened = _open(request)
    sources = find_sources(request.sources, request.corpus) if request.sources else None
    pair = RowPair(*opened.rows)
    sides = [_side(*each) for each in zip(opened.found, opened.rows, strict=True)]
    progress.start("compare", sum(side.bytes for side in sides), "bytes")
    threads = request.threads or processors()
    started = time.perf_counter()
    layers = [pair.compare(layer, threads, progress) for layer in opened.rows[0].layers]
    seconds = time.perf_counter() - started
    counts = np.sum([layer.counts for layer in layers], axis=0)
    cut = _cut(request.at_least, counts, opened.layout.heads)
    named = _Named()
    if counts[LEAST:].any():
        named = _name(request, opened, sources, ChangedRows(opened.layout, layers, cut), progress)
    result = _result(opened, sides, layers, cut, named)
    result = replace(
        result,
        compare_seconds=seconds,
        seconds=time.perf_counter() - begin,
        report=request.report,
        patch=request.patch,
    )
    if request.patch is not None:
        write_patch(request.patch, _patch(opened, layers, progress), force=request.force)
    if request.report is not None:
        from engram_cli.commands.diff.page import write_diff

        write_diff(result, request.report, force=request.force)
    return result


def _patch(opened: _Opened, layers: list[LayerChanges], progress: Progress) -> Patch:
    before, after = opened.rows
    changed = {
        layer.entry.layer: np.flatnonzero(layer.levels >= LEAST).astype(np.int64)
        for layer in layers
    }
    name = f"{opened.found[1].path.name} instead of {opened.found[0].path.name}"
    return patch_between(before, after, changed, description=name, progress=progress)


def _open(request: DiffRequest) -> _Opened:
    """Open both sides. Raises InputError unless they have one layout, the same layers and dim."""
    paths = request.before, request.after
    found = tuple(find_artifact(path) for path in paths)
    for each in found:
        if each.kind == VOCABULARY:
            raise InputError(
                f"{each.path} holds no vectors",
                "compare vocabularies: engram compress-vocab --diff",
            )
    rows = tuple(each.open(tokenizer=request.tokenizer) for each in found)
    for own in rows:
        if own.dim is None or own.dtype is None or not own.layers:
            raise InputError(
                f"{own.path} has no rows that can be compared",
                "give two tables, bundles or checkpoints with tables; engram inspect says why",
            )
    one, two = rows
    if one.layout.fingerprint != two.layout.fingerprint:
        raise InputError(
            f"{one.path} has layout {short(one.layout.fingerprint)} ({_shape(one.layout)}), "
            f"{two.path} has {short(two.layout.fingerprint)} ({_shape(two.layout)})",
            "rows can be compared where both have one layout: see both with engram inspect",
        )
    if one.layers != two.layers:
        raise InputError(
            f"{one.path} has rows of the layers {_listed(one.layers)}, {two.path} of "
            f"{_listed(two.layers)}",
            "take the layers that both have: engram convert --layers",
        )
    if one.dim != two.dim:
        raise InputError(
            f"{one.path} has {one.dim} values a row, {two.path} {two.dim}",
            "give two artifacts with rows of one width",
        )
    companions = tuple(
        Companions(
            artifact=each.path, folder=request.folder, stats=request.stats, vocab=request.vocab
        )
        for each in found
    )
    return _Opened(found=found, rows=rows, companions=companions)  # type: ignore[arg-type]


def _shape(layout: HashLayout) -> str:
    """Return what differs between layouts most often, in words."""
    orders = ", ".join(map(str, layout.orders))
    rows = sum(sum(entry.moduli) for entry in layout.layers)
    return (
        f"{layout.scheme}, {orders}-grams, {layout.heads} heads, "
        f"layers {_listed(layout.layer_ids)}, {rows:,} rows"
    )


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


def _side(found: Artifact, rows: RowSource) -> Side:
    assert rows.dtype is not None
    row_bytes = DTYPES.load(rows.dtype).row_bytes(rows.dim or 0)
    height = sum(rows.layout.layer(layer).rows for layer in rows.layers)
    return Side(path=found.path, format=found.kind, dtype=rows.dtype, bytes=height * row_bytes)


def _cut(at_least: float | None, counts: NDArray[np.int64], heads: int) -> int:
    """Return the level from which on n-grams are named: given, of what stands out, or of all."""
    if at_least is not None:
        return int(levels_of(np.array([at_least]))[0])
    return standing_out(counts, heads) or LEAST


def _name(
    request: DiffRequest,
    opened: _Opened,
    sources: Sources | None,
    changed: ChangedRows,
    progress: Progress,
) -> _Named:
    """Name the n-grams by the corpus that was given, else by the statistics that are found."""
    layout = opened.layout
    if layout.scheme == UNKNOWN_SCHEME:
        progress.note("n-grams: none, since the hash of these rows is not known")
        return _Named()
    reader = TextReader(opened.found[0], layout, opened.companions[0], request.tokenizer, progress)
    exact, tokens = None, None
    if sources is not None:
        found, tokens = _read(request, reader, sources, changed, progress)
        by = ", ".join(str(each) for each in request.sources)
    else:
        for rows, companions in zip(opened.rows, opened.companions, strict=True):
            statistics = companions.statistics_of(rows, progress)
            if statistics is not None:
                break
        else:
            progress.note(
                "n-grams: no statistics of this layout were found; give them with --stats, or a "
                "corpus with --corpus"
            )
            return _Named()
        found, by = from_sample(changed, rows, statistics), str(statistics.path)
        exact = all(sample.exact for sample in statistics.samples())
    names = Names(layout, reader.vocab)
    ngrams = tuple(described(changed, each, names, request.ngrams) for each in found)
    return _Named(by=by, exact=exact, tokens=tokens, ngrams=ngrams)


def _read(
    request: DiffRequest,
    reader: TextReader,
    sources: Sources,
    changed: ChangedRows,
    progress: Progress,
) -> tuple[list[Found], int]:
    """Return the n-grams of the corpus on changed rows; again where the fast encoder differs."""
    for remark in remarks(sources.files, request.corpus):
        progress.note(remark)
    tokenizer = None
    if needs_tokenizer(sources.files, request.corpus):
        tokenizer = reader.tokenizer("the corpus holds text")
    name = request.encoder
    while True:
        encoder = None
        if tokenizer is not None:
            encoder = make_encoder(tokenizer, name, progress, size=sources.size)
        progress.start("n-grams of the corpus", sources.size, "bytes")
        try:
            return from_corpus(changed, sources.files, request.corpus, encoder, progress)
        except EncoderDiffers as error:
            if sources.size is None or name == "tokenizers":  # what came through a pipe is gone
                raise
            progress.note(f"{error.message}: reading again from the start with tokenizers")
            name = "tokenizers"
        finally:
            if encoder is not None:
                encoder.close()


def _result(
    opened: _Opened,
    sides: list[Side],
    layers: list[LayerChanges],
    cut: int,
    named: _Named,
) -> DiffResult:
    counts = np.sum([layer.counts for layer in layers], axis=0)
    spread = concentration(counts, np.sum([layer.change for layer in layers], axis=0))
    columns = tuple(each for layer in layers for each in _columns(opened.layout, layer, cut))
    changed, within = (sum(getattr(e, name) for e in columns) for name in ("changed", "within"))
    rows = [each for layer in layers for each in _most(opened.layout, layer)]
    rows.sort(key=lambda each: (-each.norm, each.layer, each.table_row))
    return DiffResult(
        before=sides[0],
        after=sides[1],
        verdict="changed" if changed else "within" if within else "equal",
        fingerprint=opened.layout.fingerprint,
        layers=tuple(layer.entry.layer for layer in layers),
        dim=opened.rows[0].dim or 0,
        rows=sum(len(layer.levels) for layer in layers),
        changed=changed,
        within=within,
        stand_out=int(counts[cut:LEVELS].sum()) if cut > LEAST else 0,
        from_norm=norm_of(cut) if cut > LEAST else None,
        half_rows=None if spread is None else spread.half_rows,
        change_shares=() if spread is None else spread.shares,
        columns=columns,
        most=tuple(rows[:_LISTED]),
        named_by=named.by,
        sample_exact=named.exact,
        corpus_tokens=named.tokens,
        ngrams=named.ngrams,
        memory_bytes=sum(layer.levels.nbytes for layer in layers),
        compare_seconds=0.0,
        seconds=0.0,
    )


def _columns(layout: HashLayout, layer: LayerChanges, cut: int) -> Iterator[ColumnDiff]:
    """Yield what changed in each head of each order of a layer."""
    entry = layer.entry
    for at, (offset, rows) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
        changed, odd = int(layer.changed[at]), int(layer.not_finite[at])
        finite = changed - odd
        levels = layer.levels[offset : offset + rows]
        yield ColumnDiff(
            layer=entry.layer,
            order=layout.orders[at // layout.heads],
            head=at % layout.heads,
            rows=rows,
            changed=changed,
            within=int(layer.within[at]),
            stand_out=int(np.count_nonzero(levels >= cut)) if cut > LEAST else 0,
            not_finite=odd,
            cosine=float(layer.cosine[at]) / finite if finite else None,
            relative=float(layer.relative[at]) / finite if finite else None,
            largest=float(layer.largest[at]) if finite else None,
        )


def _most(layout: HashLayout, layer: LayerChanges) -> Iterator[RowDiff]:
    entry = layer.entry
    for each in layer.most:
        column = int(np.searchsorted(entry.offsets, each.row, side="right")) - 1
        column = min(column, len(entry.moduli) - 1)
        yield RowDiff(
            layer=entry.layer,
            order=layout.orders[column // layout.heads],
            head=column % layout.heads,
            row=each.row - entry.offsets[column],
            table_row=each.row,
            norm=each.norm,
            relative=each.relative,
            cosine=each.cosine,
        )

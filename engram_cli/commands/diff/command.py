"""diff: two artifacts of one layout in; the rows that changed and the n-grams they stand for out.

Rows are compared in blocks, by their bytes where both sides have one dtype. What is kept is one
byte a row, which says how much it changed. Then the n-grams are looked for whose rows changed in
all heads: in the statistics' sample, or in one pass over a corpus. `sides` opens both artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.diff.ngrams import ChangedRows, Found, described, from_corpus, from_sample
from engram_cli.commands.diff.result import ColumnDiff, DiffResult, OrderNgrams, RowDiff
from engram_cli.commands.diff.sides import Sides, open_sides
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.commands.requests.options import located
from engram_cli.commands.text_reader import TextReader
from engram_cli.corpus.checks import needs_tokenizer, remarks
from engram_cli.corpus.encode import EncoderDiffers, check_encoder, make_encoder
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.hashing.layout import UNKNOWN_SCHEME, HashLayout
from engram_cli.outputs import prepare_output
from engram_cli.patches.between import patch_between
from engram_cli.patches.patch_file import PATCH, write_patch
from engram_cli.progress import SILENT, Progress
from engram_cli.report.place import check_page
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
    _check_outputs(request)
    begin = time.perf_counter()
    check_encoder(request.encoder)
    sides = open_sides(request, progress)
    sources = find_sources(request.sources, request.corpus) if request.sources else None
    pair = RowPair(*sides.rows, only=sides.only)
    progress.start("compare", pair.bytes, "bytes")
    threads = request.threads or processors()
    started = time.perf_counter()
    layers = [pair.compare(layer, threads, progress) for layer in sides.rows[0].layers]
    seconds = time.perf_counter() - started
    counts = np.sum([layer.counts for layer in layers], axis=0)
    cut = _cut(request.at_least, counts, sides.layout.heads)
    named = _Named()
    if counts[LEAST:].any():
        named = _name(request, sides, sources, ChangedRows(sides.layout, layers, cut), progress)
    result = _result(sides, layers, cut, named)
    patch_rows = 0
    if request.patch is not None:
        patch_rows = _write_patch(request.patch, sides, layers, request.force, progress)
    result = replace(
        result,
        compared_bytes=pair.bytes,
        patch=request.patch if patch_rows else None,
        patch_rows=patch_rows,
        compare_seconds=seconds,
        seconds=time.perf_counter() - begin,
        report=request.report,
    )
    if request.report is not None:
        from engram_cli.commands.diff.page import write_diff

        write_diff(result, request.report, force=request.force)
    return result


def _check_outputs(request: DiffRequest) -> None:
    """Raise OutputError for what may not be written, before any work."""
    read = (request.before, request.after, *request.patch_before, *request.patch_after)
    inputs = (*read, *request.sources, request.stats, request.vocab, request.tokenizer)
    if request.report is not None:
        check_page(request.report, request.force, option="--report", inputs=inputs)
    if request.patch is not None:
        prepare_output(request.patch, PATCH, force=request.force, option="--patch", inputs=inputs)


def _write_patch(
    out: Path, sides: Sides, layers: list[LayerChanges], force: bool, progress: Progress
) -> int:
    """Write what changed as a patch of the first side; return its rows, 0 if it was not written."""
    changed = {
        layer.entry.layer: np.flatnonzero(layer.levels >= LEAST).astype(np.int64)
        for layer in layers
    }
    before, after = (each.stacked(each.path.name) for each in sides.described())
    patch = patch_between(
        *sides.rows, changed, description=f"{after} instead of {before}", progress=progress
    )
    if not patch.rows:
        progress.note(f"no row changed, so {out} is not written")
        return 0
    write_patch(out, patch, force=force)
    return patch.rows


def _cut(at_least: float | None, counts: NDArray[np.int64], heads: int) -> int:
    """Return the level from which on n-grams are named: given, of what stands out, or of all."""
    if at_least is not None:
        return int(levels_of(np.array([at_least]))[0])
    return standing_out(counts, heads) or LEAST


def _name(
    request: DiffRequest,
    sides: Sides,
    sources: Sources | None,
    changed: ChangedRows,
    progress: Progress,
) -> _Named:
    """Name the n-grams by the corpus that was given, else by the statistics that are found."""
    layout = sides.layout
    if layout.scheme == UNKNOWN_SCHEME:
        progress.note("n-grams: none, since the hash of these rows is not known")
        return _Named()
    reader = TextReader(sides.found[0], layout, sides.companions[0], request.tokenizer, progress)
    exact, tokens = None, None
    if sources is not None:
        found, tokens = _read(request, reader, sources, changed, progress)
        by = ", ".join(str(each) for each in request.sources)
    else:
        for rows, companions in zip(sides.rows, sides.companions, strict=True):
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
    sides: Sides,
    layers: list[LayerChanges],
    cut: int,
    named: _Named,
) -> DiffResult:
    counts = np.sum([layer.counts for layer in layers], axis=0)
    spread = concentration(counts, np.sum([layer.change for layer in layers], axis=0))
    before, after = sides.described()
    columns = tuple(each for layer in layers for each in _columns(sides.layout, layer, cut))
    changed, within = (sum(getattr(e, name) for e in columns) for name in ("changed", "within"))
    rows = [each for layer in layers for each in _most(sides.layout, layer)]
    rows.sort(key=lambda each: (-each.norm, each.layer, each.table_row))
    return DiffResult(
        before=before,
        after=after,
        verdict="changed" if changed else "within" if within else "equal",
        fingerprint=sides.layout.fingerprint,
        layers=tuple(layer.entry.layer for layer in layers),
        dim=sides.rows[0].dim or 0,
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

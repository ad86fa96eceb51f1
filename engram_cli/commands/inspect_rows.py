"""What the rows of a table, a bundle or statistics hold: one pass, figures by head out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, counted_by, hits_reader
from engram_cli.commands.lookup_rows import OtherNgram
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.progress import Progress
from engram_cli.rows.source import HITS, RowSource
from engram_cli.stats.names import Names
from engram_cli.stats.row_ngrams import RowNgram, RowNgrams, load_row_ngrams
from engram_cli.table.scan.duplicates import Duplicates
from engram_cli.table.scan.kernels.rows import BINS, STEPS
from engram_cli.table.scan.scan import HOTTEST, LayerScan, scan_layer
from engram_cli.table.scan.source import LayerReader

_NGRAMS = 3  # of a row
_BIAS = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One head of one order of one layer.

    `zero` and `not_finite` rows; `mean`, `rms`, `least`, `most`: norms of the others; `hit_mean`
    and `unhit_mean`: of those with and without a hit. None where there are no vectors or no hits.
    """

    layer: int
    order: int
    head: int
    rows: int
    hit_rows: int | None
    hits: int | None
    max_hits: int | None
    zero: int | None
    not_finite: int | None
    mean: float | None
    rms: float | None
    least: float | None
    most: float | None
    hit_mean: float | None
    unhit_mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NormBins:
    """The norms of an order's rows: `rows[i]` lie from `low[i]` up to `low[i + 1]`."""

    layer: int
    order: int
    low: tuple[float, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """A layer's rows, and how many of them have equal contents."""

    layer: int
    duplicates: Duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRow:
    """One of the hottest rows of an order, with the known n-grams that fall on it."""

    layer: int
    order: int
    head: int
    row: int
    hits: int
    ngrams: tuple[OtherNgram, ...]
    known: int


def inspect_rows(
    source: RowSource, companions: Companions, *, hottest: int, threads: int, progress: Progress
) -> dict[str, Any]:
    """Return the keys of an InspectResult that come from the rows. Raises ArtifactError.

    `hottest`: rows listed of each order.
    """
    layout = source.layout
    statistics = companions.statistics_of(source, progress)
    counted = counted_by(source, statistics)
    names = Names(layout, companions.vocabulary(layout, progress))
    columns: list[Columns] = []
    norms: list[NormBins] = []
    layers: list[LayerRows] = []
    hot: list[HotRow] = []
    readers = {}
    if source.dim is not None:
        readers = {layer: LayerReader(source, layer, counted) for layer in source.layers}
    read = sum(sum(layout.layer(n).moduli) * r.stored_row_bytes for n, r in readers.items())
    progress.start("inspect", read, "bytes")
    begin = time.perf_counter()
    for layer in source.layers:
        entry = layout.layer(layer)
        if layer in readers:
            columns_of_layer = list(zip(entry.offsets, entry.moduli, strict=True))
            scan = scan_layer(readers[layer], columns_of_layer, threads=threads, progress=progress)
            columns += _columns(layout, scan)
            norms += _norm_bins(layout, scan)
            layers.append(LayerRows(layer=layer, duplicates=scan.duplicates))
            heat = [column.hottest for column in scan.columns]
        elif counted is not None:
            hits = counted.lines(layer, HITS, 0, entry.rows)
            columns += _counted(layout, entry, hits)
            heat = _heat(entry, hits)
        else:
            continue
        known: Sequence[RowNgrams | None] = [None] * len(layout.orders)
        if statistics is not None and counted is not None:
            known = load_row_ngrams(statistics, entry, hits_reader(counted))
        hot += _of_heat(layout, layer, heat, known, names, hottest)
    return {
        "columns": tuple(columns),
        "norms": tuple(norms),
        "layers": tuple(layers),
        "hottest": tuple(hot),
        "stats": None if statistics is None else statistics.path,
        "read_bytes": read,
        "seconds": time.perf_counter() - begin,
    }


def _columns(layout: HashLayout, scan: LayerScan) -> Iterator[Columns]:
    for at, column in enumerate(scan.columns):
        unhit = None
        if column.hit_rows is not None:
            others = column.rows - column.hit_rows - column.not_finite
            usual = column.rows - column.zero - column.not_finite
            total = column.mean * usual - (column.hit_mean or 0.0) * column.hit_rows
            unhit = max(total, 0.0) / others if others > 0 else None
        yield Columns(
            layer=scan.layer,
            order=layout.orders[at // layout.heads],
            head=at % layout.heads,
            rows=column.rows,
            hit_rows=column.hit_rows,
            hits=column.hits,
            max_hits=column.max_hits,
            zero=column.zero,
            not_finite=column.not_finite,
            mean=column.mean,
            rms=column.rms,
            least=column.least,
            most=column.most,
            hit_mean=column.hit_mean,
            unhit_mean=unhit,
        )


def _counted(layout: HashLayout, entry: LayerHash, hits: NDArray[np.uint32]) -> Iterator[Columns]:
    """The figures of statistics, which know no vectors."""
    nothing = dict.fromkeys(
        ("zero", "not_finite", "mean", "rms", "least", "most", "hit_mean", "unhit_mean")
    )
    for at, (begin, rows) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
        own = hits[begin : begin + rows]
        yield Columns(
            layer=entry.layer,
            order=layout.orders[at // layout.heads],
            head=at % layout.heads,
            rows=rows,
            hit_rows=int(np.count_nonzero(own)),
            hits=int(own.sum(dtype=np.int64)),
            max_hits=int(own.max()),
            **nothing,
        )


def _norm_bins(layout: HashLayout, scan: LayerScan) -> Iterator[NormBins]:
    """The norms of all heads of an order together, from the least bin to the last one used."""
    exponents = np.arange(BINS + 1) // STEPS - _BIAS
    edges = 2.0**exponents * (1 + np.arange(BINS + 1) % STEPS / STEPS)
    for index, order in enumerate(layout.orders):
        own = scan.columns[index * layout.heads : (index + 1) * layout.heads]
        bins = np.sum([column.bins for column in own], axis=0)
        used = np.flatnonzero(bins)
        if len(used) == 0:
            continue
        first, last = int(used[0]), int(used[-1]) + 1
        yield NormBins(
            layer=scan.layer,
            order=order,
            low=tuple(edges[first : last + 1].tolist()),
            rows=tuple(bins[first:last].tolist()),
        )


Heat = list[tuple[tuple[int, int], ...]]


def _heat(entry: LayerHash, hits: NDArray[np.uint32]) -> Heat:
    """By column the `HOTTEST` rows with their hits."""
    found = []
    for begin, rows in zip(entry.offsets, entry.moduli, strict=True):
        own = hits[begin : begin + rows]
        most = min(HOTTEST, rows)
        least = np.partition(own, rows - most)[rows - most]
        among = np.flatnonzero(own >= max(least, 1))
        best = among[np.lexsort([among, -own[among].astype(np.int64)])][:most]
        found.append(tuple((int(row), int(own[row])) for row in best))
    return found


def _of_heat(
    layout: HashLayout,
    layer: int,
    heat: Heat,
    known: Sequence[RowNgrams | None],
    names: Names,
    limit: int,
) -> list[HotRow]:
    """Return the hottest rows of each order among all its heads, and what is known of them."""
    found = []
    for index, order in enumerate(layout.orders):
        own = heat[index * layout.heads : (index + 1) * layout.heads]
        best = sorted(((-hits, head, row) for head, some in enumerate(own) for row, hits in some))[
            :limit
        ]
        among, met = known[index], [dict[int, list[RowNgram]]() for _ in own]
        if among is not None and best:
            met = among.on(np.array([[row for _, _, row in best]] * layout.heads))
        for negative, head, row in best:
            ngrams = met[head].get(row, [])
            found.append(
                HotRow(
                    layer=layer,
                    order=order,
                    head=head,
                    row=row,
                    hits=-negative,
                    ngrams=tuple(
                        OtherNgram(
                            text=names.ngram(among.tokens[each.at]),
                            count=each.count,
                            exact=each.exact,
                        )
                        for each in ngrams[:_NGRAMS]
                        if among is not None
                    ),
                    known=len(ngrams),
                )
            )
    return found

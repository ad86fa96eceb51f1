"""Defines the result of `inspect`, and reads the rows of an artifact for it in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, counted_by, known_ngrams
from engram_cli.commands.lookup_rows import OtherNgram, named_ngrams
from engram_cli.commands.probe import ProbeResult
from engram_cli.formats.base import Digest
from engram_cli.formats.model_folder import Check
from engram_cli.formats.stored_layers import StoredLayer
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.remote.store import ReadCount
from engram_cli.rows.source import HITS, RowSource
from engram_cli.stats.names import Names
from engram_cli.stats.sampling.row_ngrams import RowNgram, RowNgrams
from engram_cli.table.scan.kernels.rows import BINS, STEPS
from engram_cli.table.scan.scan import Columns, Duplicates, Hottest, scan_hits, scan_layer
from engram_cli.table.scan.source import LayerReader

_NGRAMS = 3  # of a row
_BIAS = 127


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutColumn:
    """A column of the layout: its head's rows begin at table row `offset`, `modulus` of them."""

    layer: int
    order: int
    head: int
    modulus: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResult:
    """What lies at the path. `facts` are for people; everything else is what they are made from.

    `complete` is False for a half-built table, of which no more than `facts` is known.
    `format` is `kind`, None for a vocabulary; `foreign`: whether it is another program's.
    `multipliers`: by layer, as strings, since they exceed 53 bits. `columns`, `norms`, `duplicates`
    and `hottest` are empty where no rows were read, `probe` is None where nothing was asked.
    `read`: headers and rows, and of a source behind an address everything else too.
    """

    path: Path
    kind: str
    complete: bool
    facts: tuple[tuple[str, str], ...]
    digests: tuple[Digest, ...]
    files: int
    stored_bytes: int
    format: str | None = None
    foreign: bool = False
    dialect: str | None = None
    scheme: str | None = None
    layers: tuple[StoredLayer, ...] = ()
    checks: tuple[Check, ...] = ()
    multipliers: tuple[tuple[int, tuple[str, ...]], ...] = ()
    layout: tuple[LayoutColumn, ...] = ()
    columns: tuple[Columns, ...] = ()
    norms: tuple[NormBins, ...] = ()
    duplicates: tuple[LayerRows, ...] = ()
    hottest: tuple[HotRow, ...] = ()
    probe: ProbeResult | None = None
    stats: Path | None = None
    read_bytes: int = 0
    seconds: float = 0.0
    read: ReadCount | None = None
    report: Path | None = None


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
    duplicates: list[LayerRows] = []
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
            scan = scan_layer(readers[layer], threads=threads, progress=progress)
        elif counted is not None:
            scan = scan_hits(layout, layer, counted.lines(layer, HITS, 0, entry.rows))
        else:
            continue
        columns += scan.columns
        if scan.bins is not None:
            norms += _norm_bins(layout, layer, scan.bins)
        if scan.duplicates is not None:
            duplicates.append(LayerRows(layer=layer, duplicates=scan.duplicates))
        _, known = known_ngrams(source, layer, statistics)
        hot += _hot_rows(layout, layer, scan.hottest, known, names, hottest)
    return {
        "columns": tuple(columns),
        "norms": tuple(norms),
        "duplicates": tuple(duplicates),
        "hottest": tuple(hot),
        "stats": None if statistics is None else statistics.path,
        "read_bytes": read,
        "seconds": time.perf_counter() - begin,
    }


def _norm_bins(layout: HashLayout, layer: int, columns: NDArray[np.int64]) -> Iterator[NormBins]:
    """Add up the norms of all heads of an order, from the least bin to the last one used."""
    exponents = np.arange(BINS + 1) // STEPS - _BIAS
    edges = 2.0**exponents * (1 + np.arange(BINS + 1) % STEPS / STEPS)
    for index, order in enumerate(layout.orders):
        bins = columns[index * layout.heads : (index + 1) * layout.heads].sum(axis=0)
        used = np.flatnonzero(bins)
        if len(used) == 0:
            continue
        first, last = int(used[0]), int(used[-1]) + 1
        yield NormBins(
            layer=layer,
            order=order,
            low=tuple(edges[first : last + 1].tolist()),
            rows=tuple(bins[first:last].tolist()),
        )


def _hot_rows(
    layout: HashLayout,
    layer: int,
    hottest: Sequence[Hottest],
    known: Sequence[RowNgrams | None],
    names: Names,
    limit: int,
) -> list[HotRow]:
    """Return the hottest rows of each order among all its heads, and what is known of them."""
    found = []
    for index, order in enumerate(layout.orders):
        own = hottest[index * layout.heads : (index + 1) * layout.heads]
        best = sorted(((-hits, head, row) for head, some in enumerate(own) for row, hits in some))[
            :limit
        ]
        among, met = known[index], [dict[int, list[RowNgram]]() for _ in own]
        if among is not None and best:
            met = among.on(np.array([[row for _, _, row in best]] * layout.heads))
        for negative, head, row in best:
            ngrams = met[head].get(row, [])
            shown = () if among is None else named_ngrams(among, ngrams[:_NGRAMS], names)
            found.append(
                HotRow(
                    layer=layer,
                    order=order,
                    head=head,
                    row=row,
                    hits=-negative,
                    ngrams=shown,
                    known=len(ngrams),
                )
            )
    return found

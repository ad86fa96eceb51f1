"""Reads the rows of an artifact, all in one pass or a sample, for `inspect`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, counted_by, known_ngrams
from engram_cli.commands.inspect.result import HotRow, LayerRows, NormBins
from engram_cli.commands.lookup.rows import named_ngrams
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.remote.path import is_remote
from engram_cli.rows.source import HITS, RowSource
from engram_cli.stats.names import Names
from engram_cli.stats.sampling.row_ngrams import RowNgram, RowNgrams
from engram_cli.table.scan.kernels.rows import BINS, STEPS
from engram_cli.table.scan.sample import is_sampled, scan_sample
from engram_cli.table.scan.scan import Columns, Hottest, scan_hits, scan_layer
from engram_cli.table.scan.source import LayerReader

_NGRAMS = 3  # of a row
_BIAS = 127


def inspect_rows(
    source: RowSource,
    companions: Companions,
    *,
    hottest: int,
    full: bool,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Return the keys of an InspectResult that come from the rows. Raises ArtifactError.

    `hottest`: rows listed of each order. `full`: read every row. Rows behind an address all are:
    a sample would take a request for each few of them.
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
    scans = dict.fromkeys(readers, scan_layer)
    if not (full or is_remote(source.path)):
        scans |= {layer: scan_sample for layer, own in readers.items() if is_sampled(own)}
    some = any(scan is scan_sample for scan in scans.values())
    whole = sum(sum(layout.layer(n).moduli) * r.stored_row_bytes for n, r in readers.items())
    progress.start("inspect", None if some else whole, "bytes")
    begin, read, read_bytes = time.perf_counter(), 0, 0
    for layer in source.layers:
        entry = layout.layer(layer)
        if layer in readers:
            scan = scans[layer](readers[layer], threads=threads, progress=progress)
            read += scan.read
            read_bytes += scan.read * readers[layer].stored_row_bytes
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
        "sampled": some,
        "rows_read": read,
        "read_bytes": read_bytes,
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

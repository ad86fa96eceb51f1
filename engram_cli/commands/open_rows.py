"""Opens a table, bundle, statistics folder or vocabulary for reading its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Artifact, Kind, half_built
from engram_cli.commands.geometry import Geometry
from engram_cli.errors import InputError
from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.formats.bundle_spec import HITS, ROWS, SCALES
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.known import HitsAt
from engram_cli.stats.stats_io import Statistics, read_stats
from engram_cli.table.store import TableStore, open_table

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads rows at given indices; `layout` is bound.

    `vectors(layer, rows)` gives float32[n, dim], None where there are none;
    `hits(layer, rows)` uint32[n]; `scales(layer, first, count)` a bundle's, as stored, for rows in
    order; `statistics` is what was opened, when it was that.
    """

    layout: HashLayout
    layers: tuple[int, ...]
    dim: int | None = None
    vectors: Callable[[int, Indices], NDArray[np.float32]] | None = None
    hits: Callable[[int, Indices], NDArray[np.uint32]] | None = None
    scales: Callable[[int, int, int], NDArray[Any]] | None = None
    statistics: Statistics | None = None


def open_rows(found: Artifact, geometry: Geometry) -> RowReader:
    """Open what `find_artifact` found; `geometry` makes the layout of a bare vocabulary.

    Raises InputError, IncompleteError, ArtifactError as the readers of each kind do.
    """
    if found.kind is Kind.VOCABULARY:
        layout = geometry.resolve(found.path)
        return RowReader(layout=layout, layers=layout.layer_ids)
    if geometry.given:
        raise InputError(
            f"{found.path} has its own geometry ({', '.join(geometry.given)} was given)",
            "leave the geometry out, or give a vocabulary to try one",
        )
    if found.kind is Kind.STATISTICS:
        return _of_statistics(read_stats(found.path))
    if found.kind is Kind.BUNDLE:
        return _of_bundle(read_bundle(found.path))
    assert found.kind is Kind.TABLE
    if half_built(found.path):
        open_table(found.path)  # raises, and says how to go on
    return _of_table(open_table(found.path))


def hits_reader(rows: RowReader, layer: int, statistics: Statistics | None) -> HitsAt | None:
    """Return a reader of the hits of rows of `layer`, of any shape; None without hits.

    The hits of statistics are compressed, so they are read once and kept in memory.
    """
    counted = rows.statistics or statistics
    if rows.hits is not None and rows.statistics is None:
        own = rows.hits
        return lambda layer, at: own(layer, at.reshape(-1)).reshape(at.shape)
    if counted is None:
        return None
    hits = counted.hits(layer)
    return lambda layer, at: hits[at]


def _of_table(table: TableStore) -> RowReader:
    counted = table.attributes["statistics"] is not None
    return RowReader(
        layout=table.layout,
        layers=table.layout.layer_ids,
        dim=table.dim,
        vectors=table.rows,
        hits=table.hits_at if counted else None,
    )


def _of_statistics(statistics: Statistics) -> RowReader:
    return RowReader(
        layout=statistics.layout,
        layers=statistics.layout.layer_ids,
        hits=lambda layer, rows: statistics.hits(layer)[rows],
        statistics=statistics,
    )


def _of_bundle(bundle: Bundle) -> RowReader:
    spec = bundle.spec
    maps = {(layer, part): bundle.maps(layer, part) for layer in spec.layers for part in spec.parts}
    whole_layer = spec.row_type.of_layer
    hit_maps = {layer: bundle.maps(layer, HITS) for layer in spec.layers if bundle.has_hits}

    def vectors(layer: int, rows: Indices) -> NDArray[np.float32]:
        stored = _lines(maps[layer, ROWS], rows)
        scales = None
        if SCALES in spec.parts:
            own = maps[layer, SCALES]
            scales = own[0] if whole_layer else _lines(own, rows)
        values = np.empty((len(rows), spec.dim), dtype=np.float32)
        spec.row_type.decode(stored, scales, values)
        return values

    def scales(layer: int, first: int, count: int) -> NDArray[Any]:
        own = maps[layer, SCALES]
        return own[0] if whole_layer else _line_range(own, first, count)

    return RowReader(
        layout=spec.layout,
        layers=spec.layers,
        dim=spec.dim,
        vectors=vectors,
        hits=(lambda layer, rows: _lines(hit_maps[layer], rows)) if bundle.has_hits else None,
        scales=scales if SCALES in spec.parts else None,
    )


def _line_range(maps: list[NDArray[Any]], first: int, count: int) -> NDArray[Any]:
    """Copy `count` lines from `first` on of an array in pieces."""
    found, begin = [], 0
    for own in maps:
        found.append(own[max(first - begin, 0) : max(first + count - begin, 0)])
        begin += len(own)
    return np.concatenate(found)


def _lines(maps: list[NDArray[Any]], rows: Indices) -> NDArray[Any]:
    """Copy the lines at `rows` of an array in pieces."""
    found: NDArray[Any] = np.empty((len(rows), *maps[0].shape[1:]), dtype=maps[0].dtype)
    first = 0
    for own in maps:
        here = (rows >= first) & (rows < first + len(own))
        found[here] = own[rows[here] - first]
        first += len(own)
    return found

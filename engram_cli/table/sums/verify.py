"""Checks kept sums: the documents against the table's parameters, the sums against the rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.hashing.layout import LayerHash
from engram_cli.progress import SILENT, Progress
from engram_cli.table.attributes import Description, read_description
from engram_cli.table.kept_sums import StoredSums, read_sums
from engram_cli.table.sums.layer import SideState, load_records
from engram_cli.table.sums.opened import holds_documents
from engram_cli.table.sums.rows import LayerRows, stored_scale

_PIECE = 2**12  # rows


def sums_problems(
    path: Path, most: int | None, *, threads: int = 1, progress: Progress = SILENT
) -> list[str]:
    """Return what is wrong with the sums that the table at `path` keeps, a line each.

    `most`: how many rows of a layer are computed from their sums and compared, evenly spread; None
    for all. Raises as `read_description`.
    """
    about = read_description(path)
    try:
        sums = read_sums(path, about.attributes, {e.layer: e.rows for e in about.layout.layers})
        if not holds_documents(sums, about.attributes):
            return ["sums/documents does not hold the documents that filled the table"]
        progress.start("sums and rows", len(about.layout.layers), "layers")
        found = []
        for entry in about.layout.layers:
            found += _layer_problems(about, sums, entry, most, threads)
            progress.advance(1)
    except (ArtifactError, InputError) as error:
        return [error.message]
    return found


def _layer_problems(
    about: Description, sums: StoredSums, entry: LayerHash, most: int | None, threads: int
) -> list[str]:
    """Return a line if rows of a layer are not what their sums make."""
    layer = entry.layer
    rows, scale = LayerRows.of(about, layer), stored_scale(about, layer)
    records = sums.map(layer)
    columns = range(len(entry.moduli))
    state = SideState(
        columns=[sums.kept.columns[layer, column] for column in columns],
        followed=sums.kept.followed,
        scale=scale,
    )

    def compare(piece: tuple[int, NDArray[np.int64]]) -> NDArray[np.int64]:
        column, ids = piece
        made = rows.encode(state.finish(column, load_records(records, ids)), scale)
        wrong = np.zeros(len(ids), dtype=bool)
        for there, line in zip(rows.read(ids), made, strict=True):
            wrong |= (there != line).any(axis=1)
        return ids[wrong]

    pieces = [
        (column, ids[at : at + _PIECE])
        for column in columns
        for ids in [_some(entry, column, most)]
        for at in range(0, len(ids), _PIECE)
    ]
    with ThreadPoolExecutor(threads) as pool:
        wrong = np.concatenate(list(pool.map(compare, pieces)))
    if not len(wrong):
        return []
    count = sum(len(ids) for _, ids in pieces)
    return [
        f"sums/{layer}: {len(wrong):,} of {count:,} rows are not what their sums make, the first "
        f"is row {int(wrong[0]):,}"
    ]


def _some(entry: LayerHash, column: int, most: int | None) -> NDArray[np.int64]:
    """Return rows of a column in the layer, its share of `most`, evenly spread and ascending."""
    offset, modulus = entry.offsets[column], entry.moduli[column]
    count = modulus if most is None else min(-(-most // len(entry.moduli)), modulus)
    return offset + np.arange(count, dtype=np.int64) * modulus // count

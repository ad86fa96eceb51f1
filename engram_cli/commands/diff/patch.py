"""Writes what changed between two sides as a patch: rows that make the first into the second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engram_cli.commands.diff.sides import Sides
from engram_cli.patches.making import encoded_rows, stored_patch
from engram_cli.patches.patch import LayerPatch
from engram_cli.patches.patch_file import write_patch
from engram_cli.progress import Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import SCALES
from engram_cli.table.compare.levels import LEAST
from engram_cli.table.compare.rows import LayerChanges


def write_changes(
    sides: Sides, layers: Sequence[LayerChanges], out: Path, *, force: bool, progress: Progress
) -> int:
    """Write the changed rows as a patch for the first side; return how many there are.

    Rows are those of the second side to the bit where both store rows alike, else they are encoded
    in the dtype of the first. Nothing is written if none changed. Raises InputError for values that
    are not finite or a dtype that cannot be written, OutputError.
    """
    changed = {}
    for own in layers:
        ids = np.flatnonzero(own.levels >= LEAST)
        if len(ids):
            changed[own.entry.layer] = _rows_of(sides, own.entry.layer, ids)
    if not changed:
        progress.note(f"no row changed, so {out} is not written")
        return 0
    before, after = sides.described()
    patch = stored_patch(
        sides.rows[0], changed, description=f"from {before.path.name} to {after.path.name}"
    )
    write_patch(out, patch, force=force)
    return patch.rows


def _rows_of(
    sides: Sides, layer: int, ids: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> LayerPatch:
    before, after = sides.rows
    row_type = DTYPES.load(before.dtype or "")
    alike = before.dtype == after.dtype
    if alike and row_type.of_layer:
        one, two = (each.lines(layer, SCALES, 0, 1) for each in (before, after))
        alike = bool(np.array_equal(one, two))
    if not alike:
        return encoded_rows(before, layer, ids, after.vectors(layer, ids))
    rows, scales = after.stored(layer, ids)
    return LayerPatch(ids=ids, rows=rows, scales=scales)

"""The difference of two artifacts as a patch of the first one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.numbers import counted
from engram_cli.patches.making import make_patch, stored_patch
from engram_cli.patches.patch import Patch
from engram_cli.patches.replaced import as_bytes, read_rows
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import layer_scale

MOST_BYTES = 4 * 2**30  # of a patch, which is held in memory while it is made
_PIECE_BYTES = 2**22


def patch_between(
    before: RowSource,
    after: RowSource,
    changed: Mapping[int, NDArray[np.int64]],
    *,
    description: str = "",
    progress: Progress = SILENT,
) -> Patch:
    """Return the patch that gives `before` the rows of `after`, both of one layout and width.

    Where both store rows alike, it has every row whose bytes differ, so that a patched `before` has
    the bytes of `after`. Else it has the rows `changed` [n] of each layer, ascending, encoded in
    the dtype of `before`. Raises InputError for a patch of more than 4 GiB, ArtifactError.
    """
    alike = before.dtype == after.dtype and all(
        layer_scale(before, layer) == layer_scale(after, layer) for layer in before.layers
    )
    ids = {layer: each for layer, each in changed.items() if len(each)}
    if alike:
        _require_few(sum(map(len, ids.values())), before)
        ids = {
            layer: rows
            for layer in before.layers
            if len(rows := _differing(before, after, layer, progress))
        }
    _require_few(sum(map(len, ids.values())), before)
    if alike:
        layers = {layer: read_rows(after, layer, each) for layer, each in ids.items()}
        return stored_patch(before, layers, description=description)
    values = {layer: (each, after.vectors(layer, each)) for layer, each in ids.items()}
    return make_patch(before, values, description=description)


def _require_few(count: int, base: RowSource) -> None:
    size = count * (8 + DTYPES.load(base.dtype or "").row_bytes(base.dim or 0))
    if size > MOST_BYTES:
        raise InputError(
            f"a patch of {counted(count, 'row')} has {size / 1e9:,.1f} GB, more than a patch may",
            "keep the other table itself",
        )


def _differing(
    before: RowSource, after: RowSource, layer: int, progress: Progress
) -> NDArray[np.int64]:
    """Return the rows of a layer whose bytes differ, ascending."""
    row_type = DTYPES.load(before.dtype or "")
    scaled = row_type.scaling is not None and not row_type.of_layer
    parts = (ROWS, SCALES) if scaled else (ROWS,)
    height = before.layout.layer(layer).rows
    step = max(1, _PIECE_BYTES // row_type.row_bytes(before.dim or 1))
    found: list[NDArray[Any]] = []
    progress.start("rows of the patch", height, "rows")
    for first in range(0, height, step):
        count = min(step, height - first)
        other = np.zeros(count, dtype=np.bool_)
        for part in parts:
            one, two = (each.lines(layer, part, first, count) for each in (before, after))
            if one.tobytes() != two.tobytes():
                other |= (as_bytes(one) != as_bytes(two)).any(axis=1)
        found.append(np.flatnonzero(other) + first)
        progress.advance(count)
    return np.concatenate(found).astype(np.int64)

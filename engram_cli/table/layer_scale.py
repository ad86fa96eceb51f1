"""The one scale of a layer, found before its rows are written: rows or a bound in, float32[1] out.

In this order: the scale that was asked for, the one that the init's bound gives, the one that the
largest finite value gives, for which all rows are made once more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.inits.base import Filler
from engram_cli.table.spec import TableSpec

PIECE_BYTES = 2**20  # float32 values made while in the L2 cache


def layer_scale(spec: TableSpec, layer: int, filler: Filler | None) -> NDArray[np.float32]:
    """The scale float32[1] of a layer of `spec`, whose rows `filler` gives."""
    if spec.scale is not None:
        return np.array([spec.scale], dtype=np.float32)
    bound = spec.init.bound(layer, spec.dim)
    if bound is None:
        bound = 0.0 if filler is None else largest(filler, spec.row_arrays[layer].rows, spec.dim)
    return np.array([spec.row_type.layer_scale(bound)], dtype=np.float32)


def largest(filler: Filler, rows: int, dim: int) -> float:
    """The largest size of a finite value in all rows, 0 where there is none."""
    step = min(max(1, PIECE_BYTES // (4 * dim)), rows)
    values = np.empty((step, dim), dtype=np.float32)
    found = 0.0
    for first in range(0, rows, step):
        piece = values[: min(step, rows - first)]
        filler(first, piece)
        sizes = np.abs(piece)
        found = max(found, float(np.max(sizes, where=np.isfinite(sizes), initial=0)))
    return found

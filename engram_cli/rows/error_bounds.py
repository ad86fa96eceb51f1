"""How far a stored value may lie from the one that was encoded, for each dtype.

Two copies of a row, stored as different dtypes, differ by at most the sum of their bounds. The
bounds follow from the rounding of each codec; those of ggml's K types are a whole step, since
ggml's search for scales does not keep to half of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.dtypes import Floats, RowType

# Of floats: half a unit in the last place relative to the value, and half the smallest step.
_FLOATS = {"float32": (0.0, 0.0), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0)}
_E4M3 = 2.0**-4, 2.0**-10  # of e4m3, the second under a scale
_LEAST_FLOAT16 = 2.0**-25  # blocks below it are stored as zeros where scales are float16
# Blocks that carry their scales: values that share one, and the bound relative to the largest.
# Of Q8_0 half a step, and what the float16 of the step moves 127 of them; of Q4_0 a step, since +8
# is stored as +7; of float4 e2m1 half of the step from 4 to 6, and its scale's rounding.
# Third, what the rounding of a float16 scale near zero moves the largest item.
_BLOCKS = {
    "q8_0": (32, 0.57 / 127, 127 * 2.0**-25),
    "q4_0": (32, 1 / 8, 8 * 2.0**-25),
    "q6_k": (16, 1 / 32, 0.0),
    "e2m1": (16, 1 / 6, 0.0),
}
_Q4_K = 32, 1 / 15
_SLACK = 1 + 2.0**-10  # decoding and subtracting round too


def error_bounds(row_type: RowType, values: Floats, scales: NDArray[Any] | None) -> Floats:
    """Return float32[n, dim]: the most that each of `values` float32[n, dim] may be off.

    `values` are rows of `row_type` as they are read, `scales` those that they are stored with, as
    `RowType.decode` takes them; not needed where blocks carry their own.
    """
    name, sizes = row_type.items.name, np.abs(values)
    if name in _FLOATS:
        share, least = _FLOATS[name]
        bounds = sizes * np.float32(share) + np.float32(least)
    elif name in _BLOCKS:
        block, share, least = _BLOCKS[name]
        largest = _spread(_of_blocks(sizes, block).max(axis=2), block, values)
        bounds = largest * np.float32(share) + np.float32(least)
    elif name == "q4_k":
        block, share = _Q4_K
        parts = _of_blocks(values, block)
        widths = np.maximum(parts.max(axis=2), 0) - np.minimum(parts.min(axis=2), 0)
        bounds = _spread(widths, block, values) * np.float32(share)
    elif name == "e8m0_e4m3":  # the least power of two under which the largest item fits
        largest = _spread(_of_blocks(sizes, 32).max(axis=2), 32, values)
        bounds = sizes * np.float32(_E4M3[0]) + largest * np.float32(2.0**-17)
    else:
        assert scales is not None
        steps = _steps(row_type, scales, values)
        if name == "e4m3":
            bounds = sizes * np.float32(_E4M3[0]) + steps * np.float32(_E4M3[1])
        else:
            bounds = steps * np.float32(0.5)
        if scales.dtype == np.float16:
            bounds = bounds + np.float32(_LEAST_FLOAT16)
    found: Floats = bounds.astype(np.float32, copy=False) * np.float32(_SLACK)
    return found


def _steps(row_type: RowType, scales: NDArray[Any], values: Floats) -> Floats:
    """Return the scale of each value: [n, dim]."""
    wide = row_type.widen(scales)
    if row_type.of_layer:
        return np.broadcast_to(wide.reshape(1, 1), values.shape)
    wide = wide.reshape(len(values), -1)
    assert row_type.scaling is not None
    if wide.shape[1] == 1:
        return np.broadcast_to(wide, values.shape)
    return _spread(wide, row_type.scaling.block, values)


def _of_blocks(values: Floats, block: int) -> Floats:
    """Return values [n, dim] as [n, blocks, block], the last block filled with zeros."""
    missing = -values.shape[1] % block
    padded = np.pad(values, ((0, 0), (0, missing))) if missing else values
    return padded.reshape(len(values), -1, block)


def _spread(of_block: Floats, block: int, values: Floats) -> Floats:
    """Return what blocks [n, blocks] have for each value: [n, dim]."""
    spread: Floats = np.repeat(of_block, block, axis=1)[:, : values.shape[1]]
    return spread

"""Items of a byte or half a byte under scales: what their codecs share.

A value is stored as the item nearest to value / scale and read as item times scale in float32. A
block's scale follows from its largest finite value; NaN and infinite values are stored as NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels
from engram_cli.rows.dtypes import Floats, RowType


def encode(
    row_type: RowType,
    values: Floats,
    stored: NDArray[Any],
    scales: NDArray[Any],
    choose: Callable[[Floats], NDArray[Any]],
    quantise: Callable[[Floats, Floats, int, int, NDArray[np.uint8]], None],
) -> None:
    """Store `values` as `RowType.encode` says.

    `choose` gives stored scales from the largest finite absolute values of the blocks; it is not
    called where one scale serves a layer. `quantise(values, scales, dim, block, items)` writes
    items uint8, one a value, under a float32 scale a block.
    """
    dim = values.shape[1]
    block = _block(row_type, dim)
    if not row_type.of_layer:
        tops = np.empty(scales.shape, dtype=np.float32)
        kernels.block_tops(values.reshape(-1), dim, block, tops.reshape(-1))
        scales[:] = choose(tops)
    packed = row_type.items.packed
    out = stored.view(np.uint8).reshape(-1)
    items = np.empty(values.size, dtype=np.uint8) if packed else out
    quantise(values.reshape(-1), _factors(row_type, scales, len(values)), dim, block, items)
    if packed:
        kernels.to_nibbles(items, dim, out)


def decode(row_type: RowType, stored: NDArray[Any], scales: NDArray[Any], values: Floats) -> None:
    """Write item times scale to `values`, as `RowType.decode` says."""
    dim = values.shape[1]
    items = stored.view(np.uint8).reshape(-1)
    if row_type.items.packed:
        packed, items = items, np.empty(values.size, dtype=np.uint8)
        kernels.from_nibbles(packed, dim, items)
    factors = _factors(row_type, scales, len(values))
    block = _block(row_type, dim)
    kernels.from_bytes(items, row_type.items.values, factors, dim, block, values.reshape(-1))


def _block(row_type: RowType, dim: int) -> int:
    return (row_type.scaling.block if row_type.scaling is not None else 0) or dim


def _factors(row_type: RowType, scales: NDArray[Any], rows: int) -> Floats:
    """Return the scale of every block, float32, one after another."""
    factors = row_type.widen(scales).reshape(-1)
    return np.repeat(factors, rows) if row_type.of_layer else factors

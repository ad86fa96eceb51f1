"""The definition of right: rows in plain NumPy. Everything faster must equal it to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.lookback import Mask, visible


def hash_columns(
    layout: HashLayout,
    layer: LayerHash,
    compressed: NDArray[np.int32],
    *,
    dead: Mask | None = None,
    starts: Mask | None = None,
) -> NDArray[np.uint32]:
    """uint32[C, T]: the head-local row of each column at each position of one stream.

    `compressed`: int32[T] compressed ids. Mix is the XOR of token x
    multiplier in wrapping int64, row is mix XOR salt, modulo (never negative) the modulus.
    """
    seen = visible(layout, compressed, dead=dead, starts=starts)
    tokens = [_lagged(layout, compressed, seen, lag) for lag in range(layout.max_order)]
    rows = np.empty((layout.columns, len(compressed)), dtype=np.uint32)
    for index, order in enumerate(layout.orders):
        mix = np.zeros(len(compressed), dtype=np.int64)
        for lag, multiplier in enumerate(layout.lag_multipliers(layer, order)):
            mix ^= tokens[lag] * np.int64(multiplier)
        for column in range(index * layout.heads, (index + 1) * layout.heads):
            salted = mix ^ np.int64(layer.salts[column])
            rows[column] = np.remainder(salted, np.int64(layer.moduli[column]))
    return rows


def _lagged(
    layout: HashLayout, compressed: NDArray[np.int32], seen: NDArray[np.uint8], lag: int
) -> NDArray[np.int64]:
    """The token `lag` positions back, int64[T], the filler where it may not be seen."""
    shifted = np.full(len(compressed), layout.filler_id, dtype=np.int64)
    if lag < len(compressed):
        shifted[lag:] = compressed[: len(compressed) - lag]
    return np.where(seen > lag, shifted, np.int64(layout.filler_id))

"""The definition of right: rows in plain NumPy. Every faster hash equals it to the bit.

The other definitions of the hash are each tested against this one: Numba for streams
(`hashing.kernels`) and for calls of a model (`runtime.cpu_kernels`), torch (`runtime.reference`)
and Triton (`runtime.kernels.lookup`).
"""

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
    """Return uint32[C, T]: the head-local row of each column at each position of one stream.

    `compressed`: int32[T] compressed ids.
    """
    seen = visible(layout, compressed, dead=dead, starts=starts)
    older = np.full(layout.max_order - 1, layout.filler_id, dtype=np.int32)
    stream = np.concatenate([older, compressed])
    rows = np.empty((layout.columns, len(compressed)), dtype=np.uint32)
    for index, order in enumerate(layout.orders):
        multipliers = np.array(layout.lag_multipliers(layer, order), dtype=np.int64)
        mix = mix_ngrams(stream, seen, layout.filler_id, multipliers)
        for column in range(index * layout.heads, (index + 1) * layout.heads):
            if layout.fold == "powers":
                weights = np.array(layout.weights(layer, column), dtype=np.int64)
                mix = sum_ngrams(stream, seen, layout.filler_id, weights)
            rows[column] = rows_of(mix, layer.moduli[column], layer.salts[column])
    return rows


def mix_ngrams(
    x: NDArray[np.int32], seen: NDArray[np.uint8], filler: int, multipliers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return int64[T]: the XOR over the lags of token x multiplier, in wrapping int64.

    `x` int32[H+T]: compressed ids, H older ones first; `seen` uint8[T]: how many tokens each
    position may see, itself included; `multipliers` int64[n] by lag, n - 1 <= H.
    """
    count, history = len(seen), len(x) - len(seen)
    mix = np.zeros(count, dtype=np.int64)
    for lag, multiplier in enumerate(multipliers):
        lagged = x[history - lag : history - lag + count].astype(np.int64)
        mix ^= np.where(seen > lag, lagged, np.int64(filler)) * multiplier
    return mix


def sum_ngrams(
    x: NDArray[np.int32], seen: NDArray[np.uint8], filler: int, weights: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return int64[T]: the sum over the lags of token x weight; arguments as in `mix_ngrams`."""
    count, history = len(seen), len(x) - len(seen)
    total = np.zeros(count, dtype=np.int64)
    for lag, weight in enumerate(weights):
        lagged = x[history - lag : history - lag + count].astype(np.int64)
        total += np.where(seen > lag, lagged, np.int64(filler)) * weight
    return total


def rows_of(mixes: NDArray[np.int64], modulus: int, salt: int) -> NDArray[np.uint32]:
    """Return uint32[T]: (mix XOR salt) modulo the modulus, never negative."""
    rows: NDArray[np.uint32] = np.remainder(mixes ^ np.int64(salt), np.int64(modulus)).astype(
        np.uint32
    )
    return rows

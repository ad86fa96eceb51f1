"""int8, int8_b32, int4 and int4_b32: integers under a float32 scale a row or float16 a block.

Items are -127 to 127 of a byte, or -7 to 7 of half a byte; the one below is NaN. A scale has so few
bits that item times scale fits float32: decoding never rounds, and a block that is read and written
again finds the same scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels, scaled
from engram_cli.rows.dtypes import Floats, RowType

decode = scaled.decode

_LEAST_FLOAT32 = np.float32(2.0**-126)
_LEAST_FLOAT16 = np.float32(2.0**-24)
_LARGEST_FLOAT16 = np.float32(65504)
_COARSE = np.float32(2.0**-16)


def encode(row_type: RowType, values: Floats, stored: NDArray[Any], scales: NDArray[Any]) -> None:
    """Store `values` as `RowType.encode` says."""
    limit = int(row_type.items.largest)

    def choose(tops: Floats) -> NDArray[Any]:
        return (float16_scales if scales.dtype == np.float16 else float32_scales)(limit, tops)

    def quantise(
        values: Floats, factors: Floats, dim: int, block: int, items: NDArray[np.uint8]
    ) -> None:
        kernels.to_integers(values, factors, dim, block, limit, items)

    scaled.encode(row_type, values, stored, scales, choose, quantise)


def widen(row_type: RowType, scales: NDArray[Any]) -> Floats:
    """Return stored scales as float32."""
    if scales.dtype != np.float16:
        return scales.astype(np.float32)
    widened = np.empty(scales.shape, dtype=np.float32)
    halves = np.require(scales, requirements=["C", "W"]).view(np.uint16)  # as kernels take them
    kernels.from_float16(halves.reshape(-1), widened.reshape(-1))
    return widened


def float32_scales(limit: int, tops: Floats) -> Floats:
    """Return top / limit in 17 significant bits, 2**-126 or more; 0 where all items are 0."""
    bits = (tops / np.float32(limit)).view(np.int32)
    bits = (bits + 0x3F + (bits >> 7 & 1)) & ~0x7F
    return _or_zero(tops, np.maximum(bits.view(np.float32), _LEAST_FLOAT32))


def float16_scales(limit: int, tops: Floats) -> NDArray[np.float16]:
    """Return top / limit as float16, below 2**-16 the next power of two; 0 where all items are 0.

    Below 2**-16 a float16 has so few bits that rounding would move the largest item.
    """
    exact = tops / np.float32(limit)
    nearest = np.minimum(exact, _LARGEST_FLOAT16).astype(np.float16).astype(np.float32)
    power = (exact.view(np.int32) + 0x7FFFFF & ~0x7FFFFF).view(np.float32)
    chosen = np.where(exact < _COARSE, np.maximum(power, _LEAST_FLOAT16), nearest)
    return _or_zero(tops, chosen).astype(np.float16)


def _or_zero(tops: Floats, scales: Floats) -> Floats:
    return np.where(np.rint(tops / scales) == 0, np.float32(0), scales)

"""fp8_e8m0 and fp8: float8 e4m3fn items, absolute values past 448 scales stored as 448.

fp8_e8m0 (DeepSeek-V4.1) has a power of two as scale for each 32 values: one byte e for 2**(e -
127), 255 being NaN. Reading is exact, unless it leaves the range of float32. The encoding is that
of the published table (docs/reference/table-format.md).

fp8 (Qwen's n-gram tables) has one float32 scale for all rows of a layer, known before the first row
is written (`table.spec.layer_scale`). Reading rounds once, in item times scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels, scaled
from engram_cli.rows.dtypes import Floats, RowType

decode = scaled.decode

# Sizes up to 464 are nearer to 448 than to what would follow: 464 = (1 + 0x680000 / 2**23) * 2**8.
_BEYOND = 0x7FFFFF - 0x680000
_SHIFT = 8


def encode(row_type: RowType, values: Floats, stored: NDArray[Any], scales: NDArray[Any]) -> None:
    """Store `values` as `RowType.encode` says."""
    scaled.encode(row_type, values, stored, scales, e8m0_scales, kernels.to_e4m3)


def to_bfloat16(stored: NDArray[Any], scales: NDArray[Any], out: NDArray[np.uint16]) -> None:
    """Write the values of fp8_e8m0 rows [n, dim] as bfloat16 to `out` [n, dim], rounded once.

    `scales` [n, dim / 32]; dim is a multiple of 32. All contiguous. The same as `decode` and then
    rounding, without the float32 values between them: 3 times as fast.
    """
    kernels.e4m3_to_bfloat16(
        stored.view(np.uint8).reshape(-1), scales.view(np.uint8).reshape(-1), out.reshape(-1)
    )


def widen(row_type: RowType, scales: NDArray[Any]) -> Floats:
    """Return float32 scales as they are, and the powers of two that e8m0 bytes stand for."""
    if scales.dtype == np.float32:
        return scales
    powers = np.empty(scales.shape, dtype=np.float32)
    kernels.powers_of_two(np.ascontiguousarray(scales).reshape(-1), powers.reshape(-1))
    return powers


def e8m0_scales(tops: Floats) -> NDArray[Any]:
    """Return the least power of two that brings a block's largest size to 464 or below."""
    exponents = (tops.view(np.int32) + _BEYOND >> 23) - _SHIFT
    scales: NDArray[Any] = np.maximum(exponents, 0).astype(np.uint8)
    return scales

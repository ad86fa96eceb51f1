"""fp8_e8m0: float8 e4m3fn items with a power of two as scale for each 32 of them (DeepSeek-V4.1).

The scale is one byte e for 2**(e - 127), 255 being NaN. Reading is exact, unless it leaves the
range of float32. The encoding is that of the published table (docs/reference/table-format.md).
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels
from engram_cli.rows.codecs.base import Scaling
from engram_cli.rows.codecs.e4m3 import meanings
from engram_cli.rows.codecs.scaled import ScaledCodec

BLOCK = 32
# Sizes up to 464 are nearer to 448 than to what would follow: 464 = (1 + 0x680000 / 2**23) * 2**8.
_BEYOND = 0x7FFFFF - 0x680000
_SHIFT = 8


def choose(tops: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The least power of two that brings a block's largest size to 464 or below."""
    exponents = (tops.view(np.int32) + _BEYOND >> 23) - _SHIFT
    return cast("NDArray[np.uint8]", np.maximum(exponents, 0).astype(np.uint8))


def widen(scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The powers of two that the bytes stand for."""
    powers = np.empty(scales.shape, dtype=np.float32)
    kernels.powers_of_two(np.ascontiguousarray(scales).reshape(-1), powers.reshape(-1))
    return powers


FP8_E8M0 = ScaledCodec(
    name="fp8_e8m0",
    physical=np.dtype("u1"),
    scaling=Scaling(per="block", dtype=np.dtype("u1"), block=BLOCK),
    choose=choose,
    widen=widen,
    quantise=kernels.to_e4m3,
    meanings=meanings(),
)

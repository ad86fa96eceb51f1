"""fp8: float8 e4m3fn items under one float32 scale for all rows of a layer (Qwen's n-gram tables).

The scale is known before the first row is written (`table.layer_scale`). Sizes past 448 scales are
stored as 448. Reading rounds once, in item times scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels
from engram_cli.rows.codecs.base import Scaling
from engram_cli.rows.codecs.e4m3 import LARGEST, meanings
from engram_cli.rows.codecs.scaled import ScaledCodec

# From here on neither a product with an item nor a quotient leaves the normal float32 numbers.
LEAST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**100


def scale_of(largest: float) -> float:
    """The scale that brings `largest` to 448, 1 where all is zero; rounded to float32."""
    scale = largest / LARGEST if largest > 0 else 1.0
    return float(np.float32(min(max(scale, LEAST_SCALE), LARGEST_SCALE)))


def _as_float32(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(scales, dtype=np.float32)


FP8 = ScaledCodec(
    name="fp8",
    physical=np.dtype("u1"),
    scaling=Scaling(per="layer", dtype=np.dtype("<f4")),
    choose=_as_float32,
    widen=_as_float32,
    quantise=kernels.to_e4m3,
    meanings=meanings(),
)

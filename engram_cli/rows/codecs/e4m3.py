"""What the 256 items of float8 e4m3fn mean: 4 bits of exponent, 3 of mantissa, no infinity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 448.0


def meanings() -> NDArray[np.float32]:
    """The value of every item, float32[256]; items 127 and 255 are NaN."""
    items = np.arange(256)
    exponent, mantissa = items >> 3 & 15, items & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10.0)
    sizes = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    sizes[items & 127 == 127] = np.nan
    return np.where(items < 128, sizes, -sizes).astype(np.float32)

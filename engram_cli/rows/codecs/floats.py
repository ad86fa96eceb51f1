"""float32, float16 and bfloat16: one item a value, rounded to nearest, ties to even.

float16 has no saturation: a value past its largest becomes infinite, as IEEE rounding has it. NaN
stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.dtypes import Floats, RowType


def encode(
    row_type: RowType, values: Floats, stored: NDArray[Any], scales: NDArray[Any] | None
) -> None:
    """Store `values` float32[n, dim] in `stored` [n, dim]; both contiguous."""
    from engram_cli.rows.codecs import kernels  # decoding needs no Numba

    match row_type.name:
        case "float32":
            stored[:] = values
        case "float16":
            kernels.to_float16(values.reshape(-1), stored.reshape(-1).view(np.uint16))
        case _:
            kernels.to_bfloat16(values.reshape(-1), stored.reshape(-1))


def decode(
    row_type: RowType, stored: NDArray[Any], scales: NDArray[Any] | None, values: Floats
) -> None:
    """Write the values of `stored` [n, dim] to `values` float32[n, dim], exactly."""
    if row_type.name == "bfloat16":
        np.left_shift(stored, np.uint32(16), out=values.view(np.uint32), dtype=np.uint32)
    else:
        values[:] = stored

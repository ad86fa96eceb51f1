"""nvfp4: two float4 e2m1 items a byte, the lower half first, under a float8 e4m3 scale for each 16.

They are read, never written. A tensor has one more float32 scale, by which its values are
multiplied: it is no part of a row, so that what reads the rows applies it (`formats.qwen_ple`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.rows.codecs import scaled
from engram_cli.rows.dtypes import FP8, Floats, Items, RowType, Scaling

decode = scaled.decode

_BLOCK = 16
_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def encode(
    row_type: RowType, values: Floats, stored: NDArray[Any], scales: NDArray[Any] | None
) -> None:
    """Raise InputError: this dtype is read only."""
    raise InputError(f"rows of {row_type.name} are read, not written", "choose another dtype")


def widen(row_type: RowType, scales: NDArray[Any]) -> Floats:
    """Return stored e4m3 scales as float32."""
    values = FP8.items.values
    assert values is not None
    widened: Floats = values[scales]
    return widened


def _values() -> Floats:
    """Return the value of every half of a byte, 16 times over."""
    half = np.array([*_SIZES, *(-size for size in _SIZES)], dtype=np.float32)
    return np.tile(half, 16)


NVFP4 = RowType(
    name="nvfp4",
    items=Items(name="e2m1", tensor="uint8", values=_values(), packed=True, sign=0x88),
    codec="engram_cli.rows.codecs.nvfp4",
    scaling=Scaling(per="block", tensor="float8_e4m3fn", block=_BLOCK),
)

"""float32, float16 and bfloat16: one item a value, rounded to nearest, ties to even.

float16 has no saturation: a value past its largest becomes infinite, as IEEE rounding has it. NaN
stays NaN. bfloat16 is stored as its bits in uint16, because neither Zarr nor NumPy knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatCodec:
    """A float of one stored item; `pack` writes values [m] as bits [m], `unpack` reads them."""

    name: str
    physical: np.dtype[Any]
    pack: Callable[[NDArray[np.float32], NDArray[Any]], None]
    unpack: Callable[[NDArray[Any], NDArray[np.float32]], None]

    @property
    def scaling(self) -> None:
        """A stored item is a value."""

    def width(self, dim: int) -> int:
        """A row of `dim` values takes `dim` items."""
        return dim

    def encode(
        self,
        values: NDArray[np.float32],
        stored: NDArray[Any],
        scales: NDArray[Any] | None = None,
    ) -> None:
        """Store `values` float32[n, dim] in `stored` [n, dim]; both contiguous."""
        self.pack(values.reshape(-1), stored.reshape(-1))

    def decode(
        self,
        stored: NDArray[Any],
        scales: NDArray[Any] | None,
        values: NDArray[np.float32],
    ) -> None:
        """Write the values of `stored` [n, dim] to `values` float32[n, dim], exactly."""
        self.unpack(stored, values)


def _pack_float32(values: NDArray[np.float32], stored: NDArray[Any]) -> None:
    stored[:] = values


def _pack_float16(values: NDArray[np.float32], stored: NDArray[Any]) -> None:
    kernels.to_float16(values, stored.view(np.uint16))


def _widen(stored: NDArray[Any], values: NDArray[np.float32]) -> None:
    values[:] = stored


def _unpack_bfloat16(stored: NDArray[Any], values: NDArray[np.float32]) -> None:
    np.left_shift(stored, np.uint32(16), out=values.view(np.uint32), dtype=np.uint32)


FLOAT32 = FloatCodec(name="float32", physical=np.dtype("<f4"), pack=_pack_float32, unpack=_widen)
FLOAT16 = FloatCodec(name="float16", physical=np.dtype("<f2"), pack=_pack_float16, unpack=_widen)
BFLOAT16 = FloatCodec(
    name="bfloat16",
    physical=np.dtype("<u2"),
    pack=kernels.to_bfloat16,
    unpack=_unpack_bfloat16,
)

"""float32, float16 and bfloat16: one item a value, rounded to nearest, ties to even.

float16 has no saturation: a value past its largest becomes infinite, as IEEE rounding has it. NaN
stays NaN. bfloat16 is stored as its bits in uint16, because neither Zarr nor NumPy knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.codecs import kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatCodec:
    """A float of one stored item; `pack` writes values [m] as bits [m], `unpack` reads them."""

    name: str
    physical: np.dtype[Any]
    pack: Callable[[NDArray[np.float32], NDArray[Any]], None]
    unpack: Callable[[NDArray[Any]], NDArray[np.float32]]

    def width(self, dim: int) -> int:
        """A row of `dim` values takes `dim` items."""
        return dim

    def encode(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Store `values` float32[n, dim] in `out` [n, dim]; both contiguous."""
        self.pack(values.reshape(-1), out.reshape(-1))

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The values float32[n, dim] of stored rows [n, dim], exactly."""
        return self.unpack(stored)


def _pack_float32(values: NDArray[np.float32], out: NDArray[Any]) -> None:
    out[:] = values


def _pack_float16(values: NDArray[np.float32], out: NDArray[Any]) -> None:
    kernels.to_float16(values, out.view(np.uint16))


def _widen(stored: NDArray[Any]) -> NDArray[np.float32]:
    return stored.astype(np.float32)


def _unpack_bfloat16(stored: NDArray[Any]) -> NDArray[np.float32]:
    bits = stored.astype(np.uint32)
    bits <<= np.uint32(16)
    return cast("NDArray[np.float32]", bits.view(np.float32))


FLOAT32 = FloatCodec(name="float32", physical=np.dtype("<f4"), pack=_pack_float32, unpack=_widen)
FLOAT16 = FloatCodec(name="float16", physical=np.dtype("<f2"), pack=_pack_float16, unpack=_widen)
BFLOAT16 = FloatCodec(
    name="bfloat16",
    physical=np.dtype("<u2"),
    pack=kernels.to_bfloat16,
    unpack=_unpack_bfloat16,
)

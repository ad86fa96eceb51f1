"""The kernels of the codecs in plain NumPy: the definition of right, with equal signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows import DTYPES

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
E4M3: Any = DTYPES.load("fp8").items.values


def block_tops(values: Floats, dim: int, block: int, tops: Floats) -> None:
    """The largest size of a finite value in each block, 0 where there is none."""
    sizes = np.abs(values.reshape(-1, dim))
    sizes[~np.isfinite(sizes)] = 0
    if sizes.size:
        tops[:] = np.maximum.reduceat(sizes, np.arange(0, dim, block), axis=1).reshape(-1)


def to_e4m3(values: Floats, scales: Floats, dim: int, block: int, out: Bytes) -> None:
    """The e4m3 of each value over its scale; past 448 it stays 448, not finite it is NaN."""
    with np.errstate(over="ignore"):
        exact = (values / _spread(scales, dim, block)).astype(np.float64)
    known = np.isfinite(values)
    sizes = np.where(known, np.minimum(np.abs(exact), 448), 0)
    # The step between neighbours at each size, by the exponent of the size; 2**-9 below 2**-6.
    steps = np.ldexp(1.0, np.maximum(np.frexp(sizes)[1] - 1, -6) - 3)
    rounded = np.minimum(np.rint(sizes / steps) * steps, 448)
    codes = np.searchsorted(E4M3[:127], rounded).astype(np.uint8)
    codes[~known] = 0x7F
    out[:] = codes | np.signbit(values).astype(np.uint8) << np.uint8(7)


def to_integers(
    values: Floats, scales: Floats, dim: int, block: int, limit: int, out: Bytes
) -> None:
    """The int8 of each value over its scale, -limit to limit; not finite it is -limit - 1."""
    known = np.isfinite(values)
    with np.errstate(over="ignore"):
        exact = np.where(known, values, np.float32(0)) / _spread(scales, dim, block)
    codes = np.rint(np.clip(exact, -limit, limit)).astype(np.int8)
    codes[~known] = -limit - 1
    out[:] = codes.view(np.uint8)


def from_bytes(
    items: Bytes, meanings: Floats, scales: Floats, dim: int, block: int, values: Floats
) -> None:
    """`meanings` [256] of each item, times its scale."""
    with np.errstate(over="ignore", invalid="ignore"):
        values[:] = meanings[items] * _repeated(scales, dim, block)


def powers_of_two(exponents: Bytes, out: Floats) -> None:
    """2**(e - 127) of each byte e, NaN of 255."""
    out[:] = np.where(exponents == 255, np.nan, 2.0 ** (exponents - 127.0))


def from_float16(halves: NDArray[np.uint16], out: Floats) -> None:
    """The float32 of each IEEE binary16."""
    out[:] = halves.view(np.float16)


def to_nibbles(items: Bytes, dim: int, out: Bytes) -> None:
    """Two items a byte, the lower half first; a row of odd `dim` ends in a half of zero."""
    halves = np.pad(items.reshape(-1, dim) & 15, ((0, 0), (0, dim % 2)))
    out[:] = (halves[:, 0::2] | halves[:, 1::2] << 4).reshape(-1)


def from_nibbles(packed: Bytes, dim: int, items: Bytes) -> None:
    """The halves of each byte, lower first, as items 0 to 15."""
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1, dim + dim % 2)
    items[:] = halves[:, :dim].reshape(-1)


def _spread(scales: Floats, dim: int, block: int) -> Floats:
    """A divisor for each value; a scale of 0 belongs to values that are all stored as 0."""
    return _repeated(np.where(scales > 0, scales, np.float32(1)), dim, block)


def _repeated(scales: NDArray[Any], dim: int, block: int) -> NDArray[Any]:
    each = np.repeat(scales.reshape(-1, -(-dim // block)), block, axis=1)
    return each[:, :dim].reshape(-1)

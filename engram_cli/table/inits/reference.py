"""Normal variates by counter in plain NumPy: the definition of right (docs, table format).

For a word w of counter c, u = (its lower 31 bits + 1/2) / 2**31 gives the radius sqrt(-2 ln u); the
upper 32 bits give the angle. The logarithm, the sine and the cosine are the polynomials below, in
float32, every operation rounded by itself, so that every machine computes the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GENERATOR = "splitmix64-box-muller-1"
GOLDEN = 0x9E3779B97F4A7C15


def _floats(*values: str) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


# -2 ln(1 + f) / f for f in [-0.293, 0.414], relative error 2.2e-6.
LOGARITHM = _floats(
    "-2.0000017",
    "1.000028",
    "-0.66632056",
    "0.49793616",
    "-0.40909633",
    "0.37565142",
    "-0.24420974",
)
EXPONENT = np.float32("-1.3862944")  # -2 ln 2
# sin(pi t / 2) / t and cos(pi t / 2) in t**2 for |t| <= 1/2, errors 5e-9 and 3e-8.
SINE = _floats("1.5707964", "-0.6459635", "0.07968023", "-0.004602177")
COSINE = _floats("1.0", "-1.233697", "0.25359863", "-0.020408353")


def normal(key: int, first: int, std: np.float32, out: NDArray[np.float32]) -> None:
    """Normal values of the counters from `first` on, two a counter, into `out` float32[2 * n]."""
    low, high = words(key, first, len(out) // 2)
    radius = std * _radius(low)
    t = ((high & 0x3FFFFFFF) - 0x20000000).astype(np.float32)
    t = (t + np.float32(0.5)) * np.float32(2.0**-30)
    y = t * t
    sine = radius * (t * _horner(SINE, y))
    cosine = radius * _horner(COSINE, y)
    cosine = (cosine.view(np.int32) ^ (high & np.int32(-(2**31)))).view(np.float32)
    swap = (high & 0x40000000) != 0
    out[0::2] = np.where(swap, sine, cosine)
    out[1::2] = np.where(swap, cosine, sine)


def words(key: int, first: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The lower and upper halves of SplitMix64's outputs `first`, ... of a stream, int32[count]."""
    counters = np.arange(count, dtype=np.uint64) + np.uint64((first + 1) % 2**64)
    z = counters * np.uint64(GOLDEN) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    halves = z.view(np.int32).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()


def _radius(low: NDArray[np.int32]) -> NDArray[np.float32]:
    u = ((low & 0x7FFFFFFF).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    bits = u.view(np.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3: the bits of sqrt(0.5)
    f = (bits - (exponent << 23)).view(np.float32) - np.float32(1)
    square = _horner(LOGARITHM, f) * f + exponent.astype(np.float32) * EXPONENT
    radius: NDArray[np.float32] = np.sqrt(square)
    return radius


def _horner(coefficients: tuple[np.float32, ...], x: NDArray[np.float32]) -> NDArray[np.float32]:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value

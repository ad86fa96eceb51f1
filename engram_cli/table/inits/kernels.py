"""Normal variates by counter as a Numba kernel: SplitMix64 words, then Box and Muller in float32.

Only additions, multiplications, square roots and integer steps, each rounded by itself: no libm and
no fused multiply-add (Numba emits none without fastmath), so every machine computes the same bits.

For a word w of counter c, u = (its lower 31 bits + 1/2) / 2**31 gives the radius sqrt(-2 ln u); the
upper 32 bits give the angle. The logarithm, the sine and the cosine are the polynomials below.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int32, uint64

from engram_cli.jit import bits_of_float32, float32_of_bits, kernel


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
TILE = 2048  # pairs: words and values of a tile stay in the L1 cache

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = LOGARITHM
_S0, _S1, _S2, _S3 = SINE
_C0, _C1, _C2, _C3 = COSINE
_E = EXPONENT
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_R31 = np.float32(2.0**-31)
_R30 = np.float32(2.0**-30)
_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(0.5)
_SIGN = -(2**31)


@kernel("void(uint64, uint64, int32[::1], int32[::1])")
def words(key, first, low, high):  # type: ignore[no-untyped-def]
    """The lower and upper halves of the SplitMix64 words of counters `first`, `first` + 1, ..."""
    base = key + _GOLDEN * (first + uint64(1))
    for j in range(low.size):
        z = base + _GOLDEN * uint64(j)
        z = (z ^ (z >> uint64(30))) * _MIX_1
        z = (z ^ (z >> uint64(27))) * _MIX_2
        z = z ^ (z >> uint64(31))
        low[j] = int32(z & uint64(0xFFFFFFFF))
        high[j] = int32(z >> uint64(32))


@kernel("void(int32[::1], int32[::1], float32, float32[::1])")
def pairs(low, high, std, out):  # type: ignore[no-untyped-def]
    """Two normal values in `out` [2 * n] from each pair of halves [n]."""
    for i in range(low.size):
        # Radius: sqrt(-2 ln u), u = (31 bits + 1/2) / 2**31, as exponent and mantissa.
        bits = bits_of_float32((float32(low[i] & int32(0x7FFFFFFF)) + _HALF) * _R31)
        exponent = int32(bits - int32(_SQRT_HALF)) >> int32(23)
        f = float32_of_bits(int32(bits - int32(exponent << int32(23)))) - _ONE
        log = _L6
        log = log * f + _L5
        log = log * f + _L4
        log = log * f + _L3
        log = log * f + _L2
        log = log * f + _L1
        log = log * f + _L0
        radius = std * np.sqrt(log * f + float32(exponent) * _E)
        # Angle: 30 bits within an eighth of a turn to both sides, two bits choose the quarter.
        b = high[i]
        t = (float32(int32((b & int32(0x3FFFFFFF)) - int32(0x20000000))) + _HALF) * _R30
        y = t * t
        sine = radius * (t * (((_S3 * y + _S2) * y + _S1) * y + _S0))
        cosine = radius * (((_C3 * y + _C2) * y + _C1) * y + _C0)
        cosine = float32_of_bits(int32(bits_of_float32(cosine) ^ (b & int32(_SIGN))))
        swap = (b & int32(0x40000000)) != 0
        out[2 * i] = sine if swap else cosine
        out[2 * i + 1] = cosine if swap else sine


@kernel("void(uint64, uint64, float32, float32[::1])")
def normal(key, first, std, out):  # type: ignore[no-untyped-def]
    """Normal values of the counters from `first` on, two a counter, into `out` [2 * n]."""
    low = np.empty(TILE, np.int32)
    high = np.empty(TILE, np.int32)
    count = out.size // 2
    for begin in range(0, count, TILE):
        width = min(TILE, count - begin)
        words(key, first + uint64(begin), low[:width], high[:width])
        pairs(low[:width], high[:width], std, out[2 * begin : 2 * (begin + width)])


@kernel("void(uint64, float32, int64[::1], int64, float32[::1], int16[:, ::1])")
def random_vectors(key, std, tokens, dim, buffer, out):  # type: ignore[no-untyped-def]
    """Write the vectors of `tokens` [n] to `out` [n, W], as `seeded_normal` draws them; `buffer`:
    2 x ceil(dim / 2) values."""
    pairs = uint64(buffer.size // 2)
    for i in range(tokens.size):
        normal(key, uint64(tokens[i]) * pairs, std, buffer)
        target = out[i]
        for j in range(dim):
            target[j] = np.int16(np.rint(buffer[j]))

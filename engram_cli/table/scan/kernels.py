"""Numba kernels of the scan: stored rows in; norms, hashes and signs out, then folded to figures.

A row of the floats is read straight from its bits. Its norm is summed in any order, which lets the
sum take vector instructions; what that could get wrong (NaN, overflow, underflow) is summed again.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, float64, int32, int64, uint32, uint64

from engram_cli.hashing.jit import kernel
from engram_cli.table.jit import add_in_any_order, bits_of_float32, float32_of_bits

SIGNS = 16  # words of a row whose leading signs make its signature
STEPS = 8  # bins of a factor 2 in the norm
BINS = 256 * STEPS
_LEAST = np.float32(2.0**-100)  # squared norms below lost some of their values
_MOST = np.float32(2.0**120)
_HALF_SPECIAL = 0x7C00
_HALF_SCALE = np.float32(2.0**112)
# Places in `counts` and in `sums`.
ZERO, NOT_FINITE, HIT, HITS, MAX_HITS, COUNTS = 0, 1, 2, 3, 4, 5
NORM, SQUARE, HIT_NORM, SUMS = 0, 1, 2, 3


@kernel("uint64(uint64)")
def scramble(z):  # type: ignore[no-untyped-def]
    """A bijection whose every output bit depends on every input bit."""
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@kernel("uint64(uint64, intp)")
def finish_hash(total, half):  # type: ignore[no-untyped-def]
    """A row's hash from its keyed sum; never 2**64 - 1, which stands for no row."""
    return min(scramble(total + uint64(half)), uint64(0xFFFFFFFFFFFFFFFE))


@kernel("float32(float32[::1])")
def norm_again(values):  # type: ignore[no-untyped-def]
    """The Euclidean norm in float64; NaN where a value is, else infinite where one is."""
    total = float64(0)
    infinite = False
    for i in range(values.size):
        value = float64(values[i])
        if math.isinf(value):
            infinite = True
        else:
            total += value * value
    if math.isnan(total):
        return float32(np.nan)
    return float32(np.inf) if infinite else float32(math.sqrt(total))


@kernel("void(uint32[:, :, ::1], uint32[:, ::1], float32[::1], uint64[::1], uint32[::1])")
def measure_float32(words, keys, norms, hashes, signs):  # type: ignore[no-untyped-def]
    """Of rows of float32 bits [n, 2, half] the norms [n], hashes [n] and signatures [n].

    The hash is the sum of products of the halves' words, each with its key [2, half] added. Source:
    Black et al., "UMAC: Fast and Secure Message Authentication" (1999).
    """
    half = words.shape[2]
    leading = min(half, SIGNS)
    for row in range(norms.size):
        total = float32(0)
        mixed = uint64(0)
        for i in range(half):
            a, b = words[row, 0, i], words[row, 1, i]
            x, y = float32_of_bits(int32(a)), float32_of_bits(int32(b))
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            mixed += uint64(uint32(a + keys[0, i])) * uint64(uint32(b + keys[1, i]))
        sign = uint32(0)
        for i in range(leading):
            sign |= (words[row, 0, i] >> uint32(31)) << uint32(i)
        norms[row] = math.sqrt(total)
        if not (total >= _LEAST and total <= _MOST):
            values = np.empty(2 * half, np.float32)
            for i in range(half):
                values[i] = float32_of_bits(int32(words[row, 0, i]))
                values[half + i] = float32_of_bits(int32(words[row, 1, i]))
            norms[row] = norm_again(values)
        hashes[row] = finish_hash(mixed, half)
        signs[row] = sign


@kernel("void(uint32[:, :, ::1], uint32[:, ::1], float32[::1], uint64[::1], uint32[::1])")
def measure_bfloat16(words, keys, norms, hashes, signs):  # type: ignore[no-untyped-def]
    """`measure_float32` for rows of bfloat16: each word [n, 2, half] holds two values."""
    half = words.shape[2]
    leading = min(half, SIGNS)
    for row in range(norms.size):
        total = float32(0)
        mixed = uint64(0)
        for i in range(half):
            a, b = words[row, 0, i], words[row, 1, i]
            x = float32_of_bits(int32(a << uint32(16)))
            y = float32_of_bits(int32(b << uint32(16)))
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            x = float32_of_bits(int32(a & uint32(0xFFFF0000)))
            y = float32_of_bits(int32(b & uint32(0xFFFF0000)))
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            mixed += uint64(uint32(a + keys[0, i])) * uint64(uint32(b + keys[1, i]))
        sign = uint32(0)
        for i in range(leading):
            sign |= (words[row, 0, i] >> uint32(31)) << uint32(i)
        norms[row] = math.sqrt(total)
        if not (total >= _LEAST and total <= _MOST):
            values = np.empty(4 * half, np.float32)
            for i in range(half):
                for part in range(2):
                    word = words[row, part, i]
                    values[4 * i + part] = float32_of_bits(int32(word << uint32(16)))
                    values[4 * i + 2 + part] = float32_of_bits(int32(word & uint32(0xFFFF0000)))
            norms[row] = norm_again(values)
        hashes[row] = finish_hash(mixed, half)
        signs[row] = sign


@kernel("void(uint32[:, :, ::1], uint32[:, ::1], float32[::1], uint64[::1], uint32[::1])")
def measure_float16(words, keys, norms, hashes, signs):  # type: ignore[no-untyped-def]
    """`measure_bfloat16` for rows of float16, small values and infinities included."""
    half = words.shape[2]
    leading = min(half, SIGNS)
    for row in range(norms.size):
        total = float32(0)
        mixed = uint64(0)
        top = uint32(0)
        for i in range(half):
            a, b = words[row, 0, i], words[row, 1, i]
            # Shifted to where float32 has its bits, only the exponent's bias is wrong, also of the
            # smallest, which lack their leading bit in both.
            low, high = a & uint32(0x7FFF), (a >> uint32(16)) & uint32(0x7FFF)
            top = max(top, max(low, high))
            x = float32_of_bits(int32(low << uint32(13))) * _HALF_SCALE
            y = float32_of_bits(int32(high << uint32(13))) * _HALF_SCALE
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            low, high = b & uint32(0x7FFF), (b >> uint32(16)) & uint32(0x7FFF)
            top = max(top, max(low, high))
            x = float32_of_bits(int32(low << uint32(13))) * _HALF_SCALE
            y = float32_of_bits(int32(high << uint32(13))) * _HALF_SCALE
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            mixed += uint64(uint32(a + keys[0, i])) * uint64(uint32(b + keys[1, i]))
        sign = uint32(0)
        for i in range(leading):
            sign |= (words[row, 0, i] >> uint32(31)) << uint32(i)
        norms[row] = math.sqrt(total)
        if top >= uint32(_HALF_SPECIAL):
            norms[row] = np.nan if top > uint32(_HALF_SPECIAL) else np.inf
        hashes[row] = finish_hash(mixed, half)
        signs[row] = sign


@kernel("uint64(uint32)")
def place_of(sign):  # type: ignore[no-untyped-def]
    """Where a signature stands among all of them, by chance."""
    return scramble(uint64(sign) + uint64(0x632BE59BD9B4E019))


@kernel("int64(float32)")
def bin_of(norm):  # type: ignore[no-untyped-def]
    """The bin of a norm: `STEPS` equal steps in each factor 2 of it."""
    bits = int64(bits_of_float32(norm))
    return bits >> int64(20)


@kernel(
    "int64(float32[::1], uint64[::1], uint32[::1], uint32[::1], uint64, uint64, uint32,"
    " int64[::1], float64[::1], float32[::1], int64[::1], int64[::1])"
)
def fold(  # type: ignore[no-untyped-def]
    norms, hashes, signs, hits, below, signs_below, hits_above, counts, sums, ends, bins, chosen
):
    """Add rows to the figures of their column, and list those worth a closer look in `chosen` [n].

    `hits` [n] or empty. Chosen are rows with a hash below `below`, a signature placed below
    `signs_below` or hits above `hits_above`; returned is how many. `ends` are the least and the
    most norm.
    """
    found = int64(0)
    for row in range(norms.size):
        norm = norms[row]
        mine = uint32(0)
        if hits.size:
            mine = hits[row]
            if mine:
                counts[HIT] += 1
                counts[HITS] += mine
                counts[MAX_HITS] = max(counts[MAX_HITS], int64(mine))
        if not (norm < np.inf):
            counts[NOT_FINITE] += 1
        elif norm == 0:
            counts[ZERO] += 1
        else:
            sums[NORM] += norm
            sums[SQUARE] += float64(norm) * float64(norm)
            if mine:
                sums[HIT_NORM] += norm
            ends[0] = min(ends[0], norm)
            ends[1] = max(ends[1], norm)
            bins[bin_of(norm)] += 1
        usual = norm < np.inf and norm > 0
        alike = usual and (hashes[row] < below or place_of(signs[row]) < signs_below)
        if alike or mine > hits_above:
            chosen[found] = row
            found += 1
    return found


@kernel("uint64[::1](uint32[::1])")
def places_of(signs):  # type: ignore[no-untyped-def]
    """`place_of` each signature [n]."""
    places = np.empty(signs.size, np.uint64)
    for i in range(signs.size):
        places[i] = place_of(signs[i])
    return places

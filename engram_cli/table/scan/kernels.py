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
_HALF_INFINITY = 0x7C00
# Of both halves of a word: all bits but the sign, what an infinite one lacks to the sign, the sign.
_HALF_SIZES, _HALF_STEPS, _HALF_ENDS = 0x7FFF7FFF, 0x04000400, 0x80008000
_HALF_SCALE = np.float32(2.0**112)
# What the words of a row hold.
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
# Places in `counts` and in `sums`.
ZERO, NOT_FINITE, HIT, HITS, MAX_HITS, CHOSEN, COUNTS = 0, 1, 2, 3, 4, 5, 6
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
        special = uint32(0)
        for i in range(half):
            a, b = words[row, 0, i], words[row, 1, i]
            # The sum reaches a half's highest bit where its exponent has all bits.
            special |= (a & uint32(_HALF_SIZES)) + uint32(_HALF_STEPS)
            special |= (b & uint32(_HALF_SIZES)) + uint32(_HALF_STEPS)
            # Shifted to where float32 has its bits, only the exponent's bias is wrong, also of the
            # smallest, which lack their leading bit in both.
            low, high = a & uint32(0x7FFF), (a >> uint32(16)) & uint32(0x7FFF)
            x = float32_of_bits(int32(low << uint32(13))) * _HALF_SCALE
            y = float32_of_bits(int32(high << uint32(13))) * _HALF_SCALE
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            low, high = b & uint32(0x7FFF), (b >> uint32(16)) & uint32(0x7FFF)
            x = float32_of_bits(int32(low << uint32(13))) * _HALF_SCALE
            y = float32_of_bits(int32(high << uint32(13))) * _HALF_SCALE
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
            mixed += uint64(uint32(a + keys[0, i])) * uint64(uint32(b + keys[1, i]))
        sign = uint32(0)
        for i in range(leading):
            sign |= (words[row, 0, i] >> uint32(31)) << uint32(i)
        norms[row] = math.sqrt(total)
        if special & uint32(_HALF_ENDS):
            norms[row] = np.inf
            for i in range(half):
                for part in range(2):
                    word = words[row, part, i]
                    low, high = word & uint32(0x7FFF), (word >> uint32(16)) & uint32(0x7FFF)
                    if max(low, high) > uint32(_HALF_INFINITY):
                        norms[row] = np.nan
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


@kernel("void(int64[:, ::1], int64, int64)")
def heat(hottest, row, hits):  # type: ignore[no-untyped-def]
    """Put a row that comes after all of `hottest` [2, n] in its place, or nowhere.

    `hottest`: rows, and their hits descending; of equal ones those that came first.
    """
    last = hottest.shape[1] - 1
    if hits <= hottest[1, last]:
        return
    at = last
    while at > 0 and hottest[1, at - 1] < hits:
        hottest[0, at], hottest[1, at] = hottest[0, at - 1], hottest[1, at - 1]
        at -= 1
    hottest[0, at], hottest[1, at] = row, hits


@kernel(
    "void(float32[::1], uint64[::1], uint32[::1], uint32[::1], int64, uint64, uint64,"
    " int64[::1], float64[::1], float32[::1], int64[::1], int64[:, ::1], uint64[:, ::1])"
)
def fold(  # type: ignore[no-untyped-def]
    norms, hashes, signs, hits, first, below, signs_below, counts, sums, ends, bins, hottest, chosen
):
    """Add rows `first` to `first` + n to the figures of their column.

    `hits` [n] or empty. Rows with a hash below `below` or a signature placed below `signs_below`
    are put behind the counts[CHOSEN] of `chosen` [row, hash, signature], which has room for all.
    `ends` are the least and the most norm.
    """
    total, square, hit_total = sums[NORM], sums[SQUARE], sums[HIT_NORM]
    found = counts[CHOSEN]
    for row in range(norms.size):
        norm = norms[row]
        mine = int64(0)
        if hits.size:
            mine = int64(hits[row])
            if mine:
                counts[HIT] += 1
                counts[HITS] += mine
                counts[MAX_HITS] = max(counts[MAX_HITS], mine)
                heat(hottest, first + row, mine)
        if not (norm < np.inf):
            counts[NOT_FINITE] += 1
        elif norm == 0:
            counts[ZERO] += 1
        else:
            total += norm
            square += float64(norm) * float64(norm)
            if mine:
                hit_total += norm
            ends[0] = min(ends[0], norm)
            ends[1] = max(ends[1], norm)
            bins[bin_of(norm)] += 1
            if hashes[row] < below or place_of(signs[row]) < signs_below:
                chosen[0, found] = uint64(first + row)
                chosen[1, found] = hashes[row]
                chosen[2, found] = uint64(signs[row])
                found += 1
    sums[NORM], sums[SQUARE], sums[HIT_NORM] = total, square, hit_total
    counts[CHOSEN] = found


@kernel(
    "int64(int64, uint32[:, :, ::1], uint32[:, ::1], float32[::1], uint64[::1], uint32[::1],"
    " uint32[::1], int64, uint64, uint64,"
    " int64[::1], float64[::1], float32[::1], int64[::1], int64[:, ::1], uint64[:, ::1])"
)
def add_rows(  # type: ignore[no-untyped-def]
    kind, words, keys, norms, hashes, signs,
    hits, first, below, signs_below, counts, sums, ends, bins, hottest, chosen,
):  # fmt: skip
    """Measure rows [n, 2, half] of `kind` and `fold` them, as many at a time as the scratch holds.

    Ends where `chosen` might have no room for the next; returned are the rows that were added.
    """
    done = int64(0)
    while done < words.shape[0]:
        count = min(int64(norms.size), words.shape[0] - done)
        if chosen.shape[1] - counts[CHOSEN] < count:
            break
        rows, own = words[done : done + count], hits[done : done + count]
        norm, hashed, sign = norms[:count], hashes[:count], signs[:count]
        if kind == BFLOAT16:
            measure_bfloat16(rows, keys, norm, hashed, sign)
        elif kind == FLOAT16:
            measure_float16(rows, keys, norm, hashed, sign)
        else:
            measure_float32(rows, keys, norm, hashed, sign)
        fold(
            norm, hashed, sign, own, first + done, below, signs_below,
            counts, sums, ends, bins, hottest, chosen,
        )  # fmt: skip
        done += count
    return done


@kernel("uint64[::1](uint32[::1])")
def places_of(signs):  # type: ignore[no-untyped-def]
    """`place_of` each signature [n]."""
    places = np.empty(signs.size, np.uint64)
    for i in range(signs.size):
        places[i] = place_of(signs[i])
    return places

"""Norms of stored rows, read straight from their bits; a kernel for each way to store a row.

Squares are summed in any order, which lets the sum take vector instructions; what that could get
wrong (NaN, overflow, underflow) is summed again. `tests/table/scan/plain.py` has the plain twins.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, float64, int32, uint8, uint32

from engram_cli.jit import add_in_any_order, float32_of_bits, kernel
from engram_cli.table.scan.kernels.lanes import (
    BLOCKS,
    ITEMS,
    squares_of_e4m3,
    squares_of_int4,
    squares_of_int8,
)

# What a row holds, and the items (`rows.dtypes.Items`) that these kernels measure as stored.
FLOAT32, FLOAT16, BFLOAT16, INT8, INT4, E4M3 = 0, 1, 2, 3, 4, 5
NORM_KINDS = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": INT8,
    "int4": INT4,
    "e4m3": E4M3,
}
_LEAST = np.float32(2.0**-100)  # squared norms below lost some of their values
_MOST = np.float32(2.0**120)
# Of both halves of a word: all bits but the sign, what an infinite one lacks to the sign, the sign.
_HALF_SIZES, _HALF_STEPS, _HALF_ENDS = 0x7FFF7FFF, 0x04000400, 0x80008000
_HALF_SCALE = np.float32(2.0**112)
_HALF_INFINITY = 0x7C00
_FLOAT_SIZE = 0x7FFFFFFF


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


@kernel("void(uint32[:, ::1], float32[::1])")
def norms_of_float32(words, norms):  # type: ignore[no-untyped-def]
    """Of rows of float32 bits [n, dim] the norms [n]."""
    for row in range(norms.size):
        total = float32(0)
        for i in range(words.shape[1]):
            x = float32_of_bits(int32(words[row, i]))
            total = add_in_any_order(total, x * x)
        norms[row] = math.sqrt(total)
        if total >= _LEAST and total <= _MOST:
            continue
        used = uint32(0)
        for i in range(words.shape[1]):
            used |= words[row, i]
        if used & uint32(_FLOAT_SIZE):
            values = np.empty(words.shape[1], np.float32)
            for i in range(values.size):
                values[i] = float32_of_bits(int32(words[row, i]))
            norms[row] = norm_again(values)


@kernel("void(uint32[:, ::1], float32[::1])")
def norms_of_bfloat16(words, norms):  # type: ignore[no-untyped-def]
    """Of rows of bfloat16 [n, dim / 2], two a word, the norms [n]."""
    for row in range(norms.size):
        total = float32(0)
        for i in range(words.shape[1]):
            word = words[row, i]
            x = float32_of_bits(int32(word << uint32(16)))
            y = float32_of_bits(int32(word & uint32(0xFFFF0000)))
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
        norms[row] = math.sqrt(total)
        if total >= _LEAST and total <= _MOST:
            continue
        used = uint32(0)
        for i in range(words.shape[1]):
            used |= words[row, i]
        if used & uint32(_HALF_SIZES):
            values = np.empty(2 * words.shape[1], np.float32)
            for i in range(words.shape[1]):
                values[2 * i] = float32_of_bits(int32(words[row, i] << uint32(16)))
                values[2 * i + 1] = float32_of_bits(int32(words[row, i] & uint32(0xFFFF0000)))
            norms[row] = norm_again(values)


@kernel("void(uint32[:, ::1], float32[::1])")
def norms_of_float16(words, norms):  # type: ignore[no-untyped-def]
    """Of rows of float16 [n, dim / 2], two a word, the norms [n]."""
    for row in range(norms.size):
        total = float32(0)
        special = uint32(0)
        for i in range(words.shape[1]):
            word = words[row, i]
            # The sum reaches a half's highest bit where its exponent has all bits.
            special |= (word & uint32(_HALF_SIZES)) + uint32(_HALF_STEPS)
            # Shifted to where float32 has its bits, only the exponent's bias is wrong, also of the
            # smallest, which lack their leading bit in both.
            low, high = word & uint32(0x7FFF), (word >> uint32(16)) & uint32(0x7FFF)
            x = float32_of_bits(int32(low << uint32(13))) * _HALF_SCALE
            y = float32_of_bits(int32(high << uint32(13))) * _HALF_SCALE
            total = add_in_any_order(total, add_in_any_order(x * x, y * y))
        norms[row] = math.sqrt(total)
        if special & uint32(_HALF_ENDS):
            norms[row] = np.inf
            for i in range(words.shape[1]):
                word = words[row, i]
                low, high = word & uint32(0x7FFF), (word >> uint32(16)) & uint32(0x7FFF)
                if max(low, high) > uint32(_HALF_INFINITY):
                    norms[row] = np.nan


@kernel("float32(int64, uint8[::1], int64)")
def item_of(kind, items, at):  # type: ignore[no-untyped-def]
    """What the item number `at` of `kind` stands for at scale 1."""
    if kind == INT8:
        code = int32(items[at])
        return float32(np.nan) if code == 128 else float32((code ^ int32(128)) - int32(128))
    if kind == INT4:
        nibble = (int32(items[at >> 1]) >> (4 * (at & 1))) & int32(15)
        return float32(np.nan) if nibble == 8 else float32((nibble ^ int32(8)) - int32(8))
    size = int32(items[at]) & int32(0x7F)
    exponent, mantissa = size >> int32(3), float32(size & int32(7))
    if size == 0x7F:
        return float32(np.nan)
    if exponent == 0:
        return mantissa * float32(2.0**-9)
    return (float32(8) + mantissa) * float32(2.0 ** (exponent - 10))


@kernel("float32(int64, uint8[::1], int64, int64, float32[::1], int64, int64)")
def scaled_again(kind, items, first, blocks, factors, at, step):  # type: ignore[no-untyped-def]
    """`norm_again` of the decoded row whose items begin with number `first`."""
    values = np.empty(blocks * ITEMS, np.float32)
    for i in range(values.size):
        values[i] = item_of(kind, items, first + i) * factors[at + step * (i // ITEMS)]
    return norm_again(values)


@kernel("int64(int64, int64)")
def blocks_of(kind, width):  # type: ignore[no-untyped-def]
    """Return how many blocks of 32 items rows of `width` bytes of `kind` have; 0 of floats."""
    return 0 if kind < INT8 else 2 * width // ITEMS if kind == INT4 else width // ITEMS


@kernel("boolean(int64, uint8[::1], intp, float32[::1], intp)")
def add_blocks(kind, items, at, squares, to):  # type: ignore[no-untyped-def]
    """Write the sums of squares of the `BLOCKS` blocks from byte `at` on to squares[to:].

    Return whether there is a NaN among them, whose square is that of some number.
    """
    if kind == INT8:
        return squares_of_int8(items, at, squares, to)
    if kind == INT4:
        return squares_of_int4(items, at, squares, to)
    return squares_of_e4m3(items, at, squares, to)


@kernel("boolean(int64, uint8[::1], float32[::1])")
def squares_of(kind, items, squares):  # type: ignore[no-untyped-def]
    """Do as `add_blocks` for all items and all `squares` [n]."""
    width = items.size // max(squares.size, 1)
    nan = False
    whole = squares.size // BLOCKS * BLOCKS
    for block in range(0, whole, BLOCKS):
        nan |= add_blocks(kind, items, width * block, squares, block)
    if whole < squares.size:  # the last ones, with zeros behind them
        padded, sums = np.zeros(BLOCKS * ITEMS, np.uint8), np.empty(BLOCKS, np.float32)
        for i in range(width * whole, items.size):
            padded[i - width * whole] = items[i]
        nan |= add_blocks(kind, padded, 0, sums, 0)
        for block in range(whole, squares.size):
            squares[block] = sums[block - whole]
    return nan


@kernel("void(float32[::1], int64, float32[::1])", "void(uint64[::1], int64, uint64[::1])")
def add_runs(values, length, sums):  # type: ignore[no-untyped-def]
    """Write the sum of each `length` values to sums [n]; the usual lengths in vectors."""
    if length == 1:
        for i in range(sums.size):
            sums[i] = values[i]
    elif length == 2:
        for i in range(sums.size):
            sums[i] = values[2 * i] + values[2 * i + 1]
    elif length == 4:
        for i in range(sums.size):
            sums[i] = (values[4 * i] + values[4 * i + 1]) + (values[4 * i + 2] + values[4 * i + 3])
    else:
        for i in range(sums.size):
            total = values[length * i]
            for j in range(length * i + 1, length * (i + 1)):
                total += values[j]
            sums[i] = total


@kernel("void(int64, uint8[::1], int64, float32[::1], int64, int64, float32[::1], boolean)")
def measure_again(kind, items, blocks, factors, row_step, step, norms, nan):  # type: ignore[no-untyped-def]
    """Write the norms again of rows that have a NaN, if any has, or whose squares leave float32."""
    width = items.size // norms.size
    squares = np.empty(blocks, np.float32)
    for row in range(norms.size):
        own = items[row * width : (row + 1) * width]
        if nan and squares_of(kind, own, squares):
            norms[row] = np.nan
            continue
        square = norms[row] * norms[row]
        if square >= _LEAST and square <= _MOST:
            continue
        used = uint8(0)
        for i in range(own.size):
            used |= own[i]
        if kind == E4M3:
            used &= uint8(0x7F)
        if used or square != 0:
            first = row * blocks * ITEMS
            norms[row] = scaled_again(kind, items, first, blocks, factors, row * row_step, step)


@kernel("void(int64, uint8[::1], int64, float32[::1], int64, int64, float32[::1], float32[::1])")
def norms_of_scaled(kind, items, blocks, factors, row_step, step, scratch, norms):  # type: ignore[no-untyped-def]
    """Of rows of `blocks` times 32 items of `kind`, one after another, the norms [n].

    The scale of block b of row r is factors[r * row_step + b * step]. `scratch` has room for the
    blocks.
    """
    squares = scratch[: norms.size * blocks]
    nan = squares_of(kind, items, squares)
    if step:
        for i in range(squares.size):
            squares[i] = squares[i] * factors[i] * factors[i]
    add_runs(squares, blocks, norms)
    if not step:
        for row in range(norms.size):
            scale = factors[row * row_step]
            norms[row] = norms[row] * scale * scale
    unusual = int32(nan)
    for row in range(norms.size):
        square = norms[row]
        unusual += int32(not ((square >= _LEAST) & (square <= _MOST)))
        norms[row] = math.sqrt(square)
    if unusual:
        measure_again(kind, items, blocks, factors, row_step, step, norms, nan)


@kernel("void(int64, uint8[::1], int64, float32[::1], int64, int64, float32[::1], float32[::1])")
def norms_of(kind, items, width, factors, row_step, step, scratch, norms):  # type: ignore[no-untyped-def]
    """Of rows of `width` bytes of `kind`, one after another, the norms [n]."""
    if kind == FLOAT32:
        norms_of_float32(items.view(np.uint32).reshape(norms.size, width // 4), norms)
    elif kind == FLOAT16:
        norms_of_float16(items.view(np.uint32).reshape(norms.size, width // 4), norms)
    elif kind == BFLOAT16:
        norms_of_bfloat16(items.view(np.uint32).reshape(norms.size, width // 4), norms)
    else:
        blocks = blocks_of(kind, width)
        norms_of_scaled(kind, items, blocks, factors, row_step, step, scratch, norms)

"""Numba kernels of the hash: compressed ids and look-back in, rows as uint32 columns out."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint32, uint64

from engram_cli.hashing.jit import bits_of, kernel

TILE = 2048
_STRETCH = 64
# Adding this to a float64 in (-2**51, 2**51) leaves its nearest integer in the low bits.
_ROUND = np.float64(2.0**52 + 2.0**51)
# The reciprocal path is exact for mixes in [0, 2**63) and moduli between these, both excluded.
FAST_MODULUS_ABOVE = 8192
FAST_MODULUS_BELOW = 2**31


@kernel(
    *(
        f"int64({ids}[::1], int32[::1], int32[::1])"
        for ids in ("uint8", "uint16", "int32", "uint32", "int64")
    )
)
def compress(ids, lookup, out):  # type: ignore[no-untyped-def]
    """Map token ids [T] through `lookup` [V] into `out` [T]; -1, or the first bad position."""
    size = uint64(lookup.size)
    bad = int64(0)
    for i in range(ids.size):
        token = uint64(int64(ids[i]))  # a negative one is beyond every vocabulary
        mapped = lookup[token if token < size else uint64(0)]
        out[i] = mapped
        bad |= int64(token >= size) | int64(mapped < 0)
    if bad:
        for i in range(ids.size):
            token = uint64(int64(ids[i]))
            if token >= size or lookup[token] < 0:
                return i
    return int64(-1)


@kernel("void(int32[::1], boolean[::1], boolean[::1], int64, int64, int64, uint8[::1])")
def visible(x, dead, starts, eos, order, carry, out):  # type: ignore[no-untyped-def]
    """`lookback.visible` as one recurrence; empty masks mean none, eos -1 means no segments.

    Where nothing ends within a stretch of positions, nearly everywhere, all see `order` tokens.
    """
    run = carry
    for begin in range(0, x.size, _STRETCH):
        width = min(_STRETCH, x.size - begin)
        tokens = x[begin : begin + width]
        reach = out[begin : begin + width]
        eventful = int64(run < order - 1)
        for p in range(width):
            eventful |= int64(tokens[p] == eos)
        if starts.size:
            begins = starts[begin : begin + width]
            for p in range(width):
                eventful |= int64(begins[p])
        if dead.size:
            blocked = dead[begin : begin + width]
            for p in range(width):
                eventful |= int64(blocked[p])
        if not eventful:
            run = order
            for p in range(width):
                reach[p] = order
            continue
        for p in range(width):
            if starts.size and starts[begin + p]:
                run = int64(0)
            run = min(run + 1, order)
            if dead.size and dead[begin + p]:
                run = int64(0)
            reach[p] = run
            if tokens[p] == eos:
                run = int64(0)


@kernel(
    "void(int32[::1], uint8[::1], int64, int64[:, ::1], int64[::1], boolean, int64[::1],"
    " int64[::1], boolean[::1], uint32[:, ::1])"
)
def hash_columns(  # type: ignore[no-untyped-def]
    x, seen, filler, multipliers, orders, shared, moduli, salts, fast, out
):
    """Rows of T positions into `out` [C, T].

    `x` [N-1+T]: compressed ids, N-1 older ones first; `seen` [T]; `multipliers` [orders, N] by lag;
    `shared`: an order's multipliers begin with those of the order before it; `fast` [C]: the
    reciprocal path is exact for this column.
    """
    count = seen.size
    history = x.size - count
    heads = moduli.size // orders.size
    mix = np.empty(TILE, np.int64)
    as_float = np.empty(TILE, np.float64)
    low = np.empty(TILE, np.uint32)
    for begin in range(0, count, TILE):
        width = min(TILE, count - begin)
        reach = seen[begin : begin + width]
        done = int64(0)
        for o in range(orders.size):
            if not shared or o == 0:
                done = int64(0)
                for j in range(width):
                    mix[j] = 0
            for lag in range(done, orders[o]):
                multiplier = multipliers[o, lag]
                source = history + begin - lag
                lagged = x[source : source + width]
                for j in range(width):
                    token = int64(lagged[j]) if reach[j] > lag else filler
                    mix[j] ^= token * multiplier
            done = orders[o]
            for j in range(width):
                as_float[j] = float64(mix[j])
                low[j] = uint32(mix[j])
            for column in range(o * heads, (o + 1) * heads):
                row = out[column, begin : begin + width]
                if fast[column]:
                    p = uint32(moduli[column])
                    reciprocal = 1.0 / float64(moduli[column])
                    for j in range(width):
                        q = uint32(bits_of(as_float[j] * reciprocal + _ROUND) & uint64(0xFFFFFFFF))
                        s = uint32(low[j] - uint32(q * p))
                        row[j] = min(s, uint32(s + p))
                else:
                    salt, modulus = salts[column], moduli[column]
                    for j in range(width):
                        row[j] = uint32((mix[j] ^ salt) % modulus)


@kernel("void(uint32[:, ::1], int64[::1], int64[:, ::1])")
def to_rows(columns, offsets, out):  # type: ignore[no-untyped-def]
    """Columns uint32 [C, T] plus an offset each, into rows int64 [T, C], by cache-sized tiles."""
    count = columns.shape[1]
    for begin in range(0, count, 256):
        end = min(begin + 256, count)
        for column in range(columns.shape[0]):
            offset = offsets[column]
            for j in range(begin, end):
                out[j, column] = int64(columns[column, j]) + offset

"""Numba kernels of the hash: compressed ids and look-back in, rows as uint32 columns out."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint32, uint64

from engram_cli.hashing import TILE
from engram_cli.jit import bits_of, kernel

_STRETCH = 64
# Adding this to a float64 in (-2**51, 2**51) leaves its nearest integer in the low bits.
_ROUND = np.float64(2.0**52 + 2.0**51)


@kernel()  # compiled for the types of ids that are met: a command has one
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
    """Compute `lookback.visible` as one recurrence; empty masks: none, eos -1: no segments.

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


@kernel("void(int32[::1], uint8[::1], int64, int64[::1], int64, int64[::1])")
def mix_ngrams(x, seen, filler, multipliers, done, mix):  # type: ignore[no-untyped-def]
    """XOR token x multiplier into `mix` [T] for each lag from `done` to the last multiplier.

    `x` [H+T]: compressed ids, H older ones first; `seen` [T]: how many tokens each position may
    see; `multipliers` [n] by lag, n - 1 <= H. With `done` 0 the mix starts at 0.
    """
    width = mix.size
    history = x.size - width
    least = multipliers.size
    for j in range(width):
        least = min(least, int64(seen[j]))
    if done == 0:
        for j in range(width):
            mix[j] = 0
    for lag in range(done, multipliers.size):
        multiplier = multipliers[lag]
        lagged = x[history - lag : history - lag + width]
        if lag < least:  # every position sees this token: nearly everywhere
            for j in range(width):
                mix[j] ^= int64(lagged[j]) * multiplier
        else:
            for j in range(width):
                token = int64(lagged[j]) if seen[j] > lag else filler
                mix[j] ^= token * multiplier


@kernel("void(int32[::1], uint8[::1], int64, int64[::1], int64[::1])")
def sum_ngrams(x, seen, filler, weights, total):  # type: ignore[no-untyped-def]
    """Write the sum of token x weight over the lags into `total` [T]; arguments as in
    `mix_ngrams`."""
    width = total.size
    history = x.size - width
    for j in range(width):
        total[j] = 0
    for lag in range(weights.size):
        weight = weights[lag]
        lagged = x[history - lag : history - lag + width]
        for j in range(width):
            token = int64(lagged[j]) if seen[j] > lag else filler
            total[j] += token * weight


@kernel("uint32(float64, uint32, uint32, float64)")
def fast_row(mix, low, modulus, reciprocal):  # type: ignore[no-untyped-def]
    """Return a mix modulo a modulus, where the reciprocal path is exact: the mix as a float64, its
    lower 32 bits, the modulus and 1 / modulus."""
    quotient = uint32(bits_of(mix * reciprocal + _ROUND) & uint64(0xFFFFFFFF))
    row = uint32(low - uint32(quotient * modulus))
    return min(row, uint32(row + modulus))


@kernel("uint32(int64, int64, int64)")
def plain_row(mix, salt, modulus):  # type: ignore[no-untyped-def]
    """Return (mix XOR salt) mod modulus, for any mix and modulus."""
    return uint32((mix ^ salt) % modulus)


@kernel("void(uint64[::1], int64, int64, boolean, uint32[::1])")
def rows_of(mixes, modulus, salt, fast, rows):  # type: ignore[no-untyped-def]
    """Write the head-local row of each mix [T] into `rows` [T]; `fast`: as in `hash_columns`."""
    if fast:
        p, reciprocal = uint32(modulus), 1.0 / float64(modulus)
        for j in range(rows.size):
            mix = int64(mixes[j])
            rows[j] = fast_row(float64(mix), uint32(mix), p, reciprocal)
    else:
        for j in range(rows.size):
            rows[j] = plain_row(int64(mixes[j]), salt, modulus)


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
    reciprocal path is exact for this column, and its salt is 0.
    """
    count = seen.size
    history = x.size - count
    heads = moduli.size // orders.size
    tile = np.empty(TILE, np.int64)
    # Converted once for all heads: `rows_of` for each head is 6 to 15 % slower.
    as_float = np.empty(TILE, np.float64)
    low = np.empty(TILE, np.uint32)
    for begin in range(0, count, TILE):
        width = min(TILE, count - begin)
        mix, reach = tile[:width], seen[begin : begin + width]
        tokens = x[begin : begin + history + width]
        for o in range(orders.size):
            done = orders[o - 1] if shared and o > 0 else int64(0)
            mix_ngrams(tokens, reach, filler, multipliers[o, : orders[o]], done, mix)
            for j in range(width):
                as_float[j] = float64(mix[j])
                low[j] = uint32(mix[j])
            for column in range(o * heads, (o + 1) * heads):
                row = out[column, begin : begin + width]
                salt, modulus = salts[column], moduli[column]
                if fast[column]:
                    p, reciprocal = uint32(modulus), 1.0 / float64(modulus)
                    for j in range(width):
                        row[j] = fast_row(as_float[j], low[j], p, reciprocal)
                else:
                    for j in range(width):
                        row[j] = plain_row(mix[j], salt, modulus)


@kernel(
    "void(int32[::1], uint8[::1], int64, int64[:, ::1], int64[::1], int64[::1], boolean[::1],"
    " uint32[:, ::1])"
)
def sum_columns(x, seen, filler, weights, orders, moduli, fast, out):  # type: ignore[no-untyped-def]
    """`hash_columns` for the fold "powers": `weights` [C, N] of each column by lag."""
    count = seen.size
    history = x.size - count
    heads = moduli.size // orders.size
    tile = np.empty(TILE, np.int64)
    for begin in range(0, count, TILE):
        width = min(TILE, count - begin)
        total, reach = tile[:width], seen[begin : begin + width]
        tokens = x[begin : begin + history + width]
        for column in range(moduli.size):
            own = weights[column, : orders[column // heads]]
            sum_ngrams(tokens, reach, filler, own, total)
            row = out[column, begin : begin + width]
            rows_of(total.view(np.uint64), moduli[column], 0, fast[column], row)


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

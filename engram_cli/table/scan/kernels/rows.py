"""What is done with every row, however it is stored: hash, figures, sample.

A tile of rows is measured while it is in the L1 cache, in one short loop after another: each takes
vector instructions, which one long loop would not.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int32, int64, uint8, uint32, uint64

from engram_cli.jit import add_in_any_order, bits_of_float32, float32_of_bits, kernel
from engram_cli.table.scan.kernels.lanes import PRODUCTS, WORDS, sums_of_2, sums_of_4, sums_of_8
from engram_cli.table.scan.kernels.norms import add_runs, blocks_of, norms_of

TILE = 2048  # rows, a multiple of 8: one of 256 costs 1 ns more a row
_TILE_BYTES = 2**17  # of wide rows, so that what is kept of a tile stays small
STEPS = 8  # bins of a factor 2 in the norm
BINS = 256 * STEPS
_ENDLESS = 255 * STEPS  # the first bin of norms that are not finite
_PARTS = 4  # bins are counted in turn, since an addition to one has to wait for the last one
# Places in `counts` and in `sums`.
ZERO, NOT_FINITE, HIT, HITS, MAX_HITS, CHOSEN, COUNTS = 0, 1, 2, 3, 4, 5, 6
NORM, SQUARE, HIT_NORM, SUMS = 0, 1, 2, 3
# Rows of `chosen`.
ROW, HASH, COLUMNS = 0, 1, 2
_LOW = 0xFFFFFFFF
_INFINITY = 0x7F800000


@kernel("uint64(uint64)")
def scramble(z):  # type: ignore[no-untyped-def]
    """Apply a bijection whose every output bit depends on every input bit."""
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@kernel("int64(float32)")
def bin_of(norm):  # type: ignore[no-untyped-def]
    """Return the bin of a norm: `STEPS` equal steps in each factor 2 of it."""
    return (int64(bits_of_float32(norm)) >> int64(20)) & int64(BINS - 1)


@kernel("intp(intp)")
def runs_of(width):  # type: ignore[no-untyped-def]
    """Return into how many equal runs `sum_rows` cuts a row of `width` words."""
    return width // min(width & -width, 8)


@kernel("uint64[::1](uint64[::1], intp)")
def repeat_keys(keys, width):  # type: ignore[no-untyped-def]
    """Return the `width` keys of a row's words again and again, as `sum_rows` takes them."""
    repeated = np.empty(width + WORDS, np.uint64)
    for i in range(repeated.size):
        repeated[i] = keys[i % width]
    return repeated


@kernel(
    "void(uint64[:, ::1], float32[::1], intp, uint64[::1], uint64[::1], uint64[::1], uint64[::1])"
)
def sum_rows(words, factors, scales, keys, scale_keys, partial, hashes):  # type: ignore[no-untyped-def]
    """Of rows [n, w] and `scales` factors each: what their hashes are made of.

    The hash is the sum of products of the halves of the words, each with its half of a key added,
    and of keyed scales. Source: Black et al., "UMAC: Fast and Secure Message Authentication"
    (1999). `keys` come from `repeat_keys`; `partial` has room for the runs of all rows.
    """
    rows, width = words.shape
    runs = runs_of(width)
    lanes, count, flat = width // runs, rows * runs, words.reshape(rows * width)
    at, step = 0, PRODUCTS * lanes % width
    done = count // PRODUCTS * PRODUCTS if lanes > 1 else 0
    for i in range(0, done, PRODUCTS):
        if lanes == 8:
            sums_of_8(flat, lanes * i, keys, at, partial, i)
        elif lanes == 4:
            sums_of_4(flat, lanes * i, keys, at, partial, i)
        else:
            sums_of_2(flat, lanes * i, keys, at, partial, i)
        at += step
        at -= width if at >= width else 0
    for i in range(done, count):
        total = uint64(0)
        for j in range(lanes * i, lanes * (i + 1)):
            key = keys[j % width]
            low = (flat[j] + key) & uint64(_LOW)
            high = ((flat[j] >> uint64(32)) + (key >> uint64(32))) & uint64(_LOW)
            total += low * high
        partial[i] = total
    add_runs(partial, runs, hashes)
    for row in range(rows):
        hashes[row] += uint64(width)
    if scales == 2:
        first, second = scale_keys[0] | uint64(1), scale_keys[1] | uint64(1)
        for row in range(rows):
            bits = uint64(uint32(bits_of_float32(factors[2 * row]))) * first
            hashes[row] += bits + uint64(uint32(bits_of_float32(factors[2 * row + 1]))) * second
        return
    for i in range(scales):
        key = scale_keys[i] | uint64(1)
        for row in range(rows):
            hashes[row] += uint64(uint32(bits_of_float32(factors[row * scales + i]))) * key


@kernel("void(float32[::1], uint64[::1], uint64, uint8[::1])")
def finish_hashes(norms, hashes, below, flags):  # type: ignore[no-untyped-def]
    """Make hashes of sums; flag the rows with values whose hash is under `below`.

    A hash is never 2**64 - 1, which stands for no row.
    """
    for row in range(norms.size):
        hashed = min(scramble(hashes[row]), uint64(0xFFFFFFFFFFFFFFFE))
        hashes[row] = hashed
        usual = (norms[row] > float32(0)) & (norms[row] < float32(np.inf))
        flags[row] = uint8(usual & (hashed < below))


@kernel("void(uint64[::1], uint8[::1], int64, int64[::1], uint64[:, ::1])")
def choose(hashes, flags, first, counts, chosen):  # type: ignore[no-untyped-def]
    """Put the flagged rows behind the counts[CHOSEN] of `chosen` [2, m]."""
    found = counts[CHOSEN]
    eights = flags.view(np.uint64)
    for eight in range(eights.size):
        if eights[eight] == 0:
            continue
        for row in range(8 * eight, min(8 * eight + 8, hashes.size)):
            if flags[row]:
                chosen[ROW, found], chosen[HASH, found] = uint64(first + row), hashes[row]
                found += 1
    counts[CHOSEN] = found


@kernel("void(float32[::1], int64[::1], float64[::1], float32[::1], int32[:, ::1])")
def fold(norms, counts, sums, ends, parts):  # type: ignore[no-untyped-def]
    """Add norms to the figures of their column. `ends` are the least and the most norm.

    `parts` [_PARTS, BINS] also take those that are zero or not finite.
    """
    total, square = float64(0), float64(0)
    zero, endless = int32(0), int32(0)
    least, most = uint32(_LOW), uint32(0)
    for row in range(norms.size):
        bits = uint32(bits_of_float32(norms[row])) & uint32(0x7FFFFFFF)
        finite = bits < uint32(_INFINITY)
        norm = float64(norms[row] if finite else float32(0))
        total = add_in_any_order(total, norm)
        square = add_in_any_order(square, norm * norm)
        zero += int32(bits == uint32(0))
        endless += int32(not finite)
        # Zero becomes the greatest of all.
        least = min(least, uint32(bits - uint32(1)))
        most = max(most, bits if finite else uint32(0))
    sums[NORM] += total
    sums[SQUARE] += square
    counts[ZERO] += zero
    counts[NOT_FINITE] += endless
    if most:
        ends[0] = min(ends[0], float32_of_bits(int32(least + uint32(1))))
        ends[1] = max(ends[1], float32_of_bits(int32(most)))
    for row in range(norms.size):
        parts[row & (_PARTS - 1), bin_of(norms[row])] += int32(1)


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


@kernel("void(float32[::1], uint32[::1], int64, int64[::1], float64[::1], int64[:, ::1])")
def fold_hits(norms, hits, first, counts, sums, hottest):  # type: ignore[no-untyped-def]
    """Add the hits of rows `first` to `first` + n to the figures of their column."""
    for row in range(hits.size):
        mine = int64(hits[row])
        if mine:
            counts[HIT] += 1
            counts[HITS] += mine
            counts[MAX_HITS] = max(counts[MAX_HITS], mine)
            heat(hottest, first + row, mine)
            if norms[row] < np.inf:
                sums[HIT_NORM] += norms[row]


@kernel(
    "int64(int64, uint8[:, ::1], float32[::1], int64, int64, uint64[::1],"
    " uint32[::1], int64, uint64, int64[::1], float64[::1], float32[::1], int64[::1],"
    " int64[:, ::1], uint64[:, ::1])"
)
def add_rows(  # type: ignore[no-untyped-def]
    kind, items, factors, scales, step, keys, hits,
    first, below, counts, sums, ends, bins, hottest, chosen,
):  # fmt: skip
    """Measure rows [n, bytes] of `kind`, numbered from `first` on, and add them to the figures.

    The scale of block b of row r is factors[r * scales + b * step]. `hits` [n] or empty. `chosen`
    takes the rows whose hash is under `below`. Ends where that has no room left; returned are the
    rows that were added.
    """
    width, zero = items.shape[1], counts[ZERO]
    words = width // 8
    tile = min(int64(TILE), max(int64(8), _TILE_BYTES // width))
    norms, flags = np.empty(tile, np.float32), np.zeros(TILE, np.uint8)
    hashes, partial = np.empty(tile, np.uint64), np.empty(tile * runs_of(words), np.uint64)
    squares = np.empty(tile * blocks_of(kind, width), np.float32)
    parts = np.zeros((_PARTS, BINS), np.int32)
    repeated, scale_keys = repeat_keys(keys, words), keys[words:]
    done = int64(0)
    while done < items.shape[0]:
        count = min(tile, items.shape[0] - done, chosen.shape[1] - counts[CHOSEN])
        if not count:
            break
        own = items[done : done + count]
        scale = factors[done * scales :]
        norm, hashed = norms[:count], hashes[:count]
        flags[count:] = 0
        norms_of(kind, own.reshape(count * width), width, scale, scales, step, squares, norm)
        sum_rows(own.view(np.uint64), scale, scales, repeated, scale_keys, partial, hashed)
        finish_hashes(norm, hashed, below, flags)
        choose(hashed, flags, first + done, counts, chosen)
        fold(norm, counts, sums, ends, parts)
        if hits.size:
            fold_hits(norm, hits[done : done + count], first + done, counts, sums, hottest)
        done += count
    for part in range(_PARTS):
        for i in range(_ENDLESS):
            bins[i] += parts[part, i]
    bins[0] -= counts[ZERO] - zero
    return done

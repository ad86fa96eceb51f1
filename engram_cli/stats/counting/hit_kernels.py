"""Numba kernels of the row hits: tokens to n-grams with their occurrences, and those to counters.

The n-grams of an order are told apart by their mix, the 64-bit number that the hash of every head
starts from: those of equal mix have equal rows, so nothing is lost by taking them for one.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64

from engram_cli.hashing.kernels import mix_ngrams, rows_of
from engram_cli.jit import kernel, prefetch

TILE = 2048
ROWS_AHEAD = 64  # how far ahead a counter is asked for
SLOTS_AHEAD = 16  # the same for slots of the combining table
# A slot of the combining table: 48 bits of the scrambled mix over 14 bits of occurrences. The other
# 16 bits of the mix are the slot's number.
SLOT_BITS, TIMES_BITS = 16, 14
MOST_TIMES = 2**TIMES_BITS - 1
ROW_BITS = 32 - TIMES_BITS  # an item is the row in its part of a column, and its occurrences
_LINE = 16  # counters of a cache line
_ODD = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_SLOT_SHIFT = np.uint64(64 - SLOT_BITS)
_TAG = np.uint64(2 ** (64 - SLOT_BITS) - 1)
_TIMES_SHIFT = np.uint64(TIMES_BITS)
_TIMES = np.uint64(MOST_TIMES)
_ROW_SHIFT = np.uint32(ROW_BITS)
_ROWS = np.uint32(2**ROW_BITS - 1)
_FULL = np.uint64(0xFFFFFFFF)


@kernel(
    "int64(int32[::1], uint8[::1], int64, int64[::1], int64, int64, boolean, uint64[::1], int64,"
    " uint64[::1], uint16[::1], uint32[::1])"
)
def combine(  # type: ignore[no-untyped-def]
    x, seen, filler, multipliers, modulus, salt, fast, slots, used, mixes, times, rows
):
    """Add up the n-grams at T positions in `slots`; those that make room for others go to a list.

    `x` [N-1+T] with the history first, `seen` [T], `multipliers` [n] by lag; `slots` [65,536], 0
    where free; `mixes`, `times` [L]: the list, of scrambled mixes, `used` long, which must have
    room for T+1 more. `rows` [T] or empty: the rows of the column of `modulus`. Gives the length of
    the list.
    """
    count = seen.size
    history = x.size - count
    tile = np.zeros(TILE + SLOTS_AHEAD, np.int64)
    for begin in range(0, count, TILE):
        width = min(TILE, count - begin)
        here = tile[:width]
        reach = seen[begin : begin + width]
        mix_ngrams(x[begin : begin + history + width], reach, filler, multipliers, 0, here)
        if rows.size:
            rows_of(here.view(np.uint64), modulus, salt, fast, rows[begin : begin + width])
        for j in range(width):
            here[j] = int64(uint64(here[j]) * _ODD)
        for j in range(width):
            prefetch(slots, int64(uint64(tile[j + SLOTS_AHEAD]) >> _SLOT_SHIFT))
            scrambled = uint64(here[j])
            slot = int64(scrambled >> _SLOT_SHIFT)
            tag = (scrambled & _TAG) << _TIMES_SHIFT
            old = slots[slot]
            seldom = old & _TIMES
            same = uint64((old ^ tag) < _TIMES)  # of the same tag, with room for one more
            # No branch that would be guessed wrong: a product instead of a choice, and an entry of
            # the list that is written always and kept sometimes.
            slots[slot] = tag + seldom * same + uint64(1)
            mixes[used] = (scrambled & ~_TAG) | (old >> _TIMES_SHIFT)
            times[used] = seldom
            used += int64(old != uint64(0)) & int64(uint64(1) - same)
    return used


@kernel("int64(uint64[::1], int64, uint64[::1], uint16[::1])")
def empty_slots(slots, used, mixes, times):  # type: ignore[no-untyped-def]
    """Move all that `slots` hold to the list, as in `combine`."""
    for slot in range(slots.size):
        old = slots[slot]
        if old != uint64(0):
            mixes[used] = (uint64(slot) << _SLOT_SHIFT) | (old >> _TIMES_SHIFT)
            times[used] = old & _TIMES
            used += 1
            slots[slot] = uint64(0)
    return used


@kernel("void(uint64[::1])")
def unscramble(mixes):  # type: ignore[no-untyped-def]
    """Undo what `combine` did to mixes, in place."""
    for i in range(mixes.size):
        mixes[i] *= _INVERSE


@kernel("uint32(uint32[::1])")
def bring_near(hits):  # type: ignore[no-untyped-def]
    """Read counters from end to end, so that the caches hold them: random reads of the same would
    take three times as long. Gives their sum, for the compiler not to leave it out."""
    total = uint32(0)
    for i in range(hits.size):
        total += hits[i]
    return total


@kernel("uint32(uint64[::1], uint16[::1], int64, int64, boolean, uint32[::1])")
def count_near(mixes, times, modulus, salt, fast, hits):  # type: ignore[no-untyped-def]
    """Add `times` [n] to the counters [modulus] of the rows of `mixes` [n], which stay at 2**32-1.

    For a column that the caches hold. Gives nothing of meaning.
    """
    rows = np.empty(TILE, np.uint32)
    touched = bring_near(hits)
    for begin in range(0, mixes.size, TILE):
        width = min(TILE, mixes.size - begin)
        now = rows[:width]
        add = times[begin : begin + width]
        rows_of(mixes[begin : begin + width], modulus, salt, fast, now)
        led = max(width - ROWS_AHEAD, 0)
        lead = now[width - led :]
        for j in range(led):
            prefetch(hits, int64(lead[j]))
            hits[now[j]] = uint32(min(uint64(hits[now[j]]) + uint64(add[j]), _FULL))
        for j in range(led, width):
            hits[now[j]] = uint32(min(uint64(hits[now[j]]) + uint64(add[j]), _FULL))
    return touched


@kernel("void(uint32[::1], uint32[::1])")
def count_rows(rows, hits):  # type: ignore[no-untyped-def]
    """Add one occurrence of each of `rows` [n] to the counters of a column."""
    ahead = max(rows.size - ROWS_AHEAD, 0)
    later = rows[rows.size - ahead :]
    for i in range(rows.size):
        if i < ahead:
            prefetch(hits, int64(later[i]))
        hits[rows[i]] = uint32(min(uint64(hits[rows[i]]) + uint64(1), _FULL))


@kernel("void(uint32[::1], uint32[::1], uint32[::1])")
def count_items(items, hits, after):  # type: ignore[no-untyped-def]
    """Add items [n] of a part of a column to its counters, and fetch those `after` it meanwhile."""
    fetched = 0
    for begin in range(0, items.size, _LINE):
        end = min(begin + _LINE, items.size)
        while fetched < after.size * end // items.size:
            prefetch(after, fetched)
            fetched += _LINE
        for i in range(begin, end):
            row = items[i] & _ROWS
            hits[row] = uint32(min(uint64(hits[row]) + uint64(items[i] >> _ROW_SHIFT), _FULL))


@kernel(
    "uint32(uint64[::1], uint16[::1], int64, int64, boolean, int64, uint32[:, ::1], int64[::1],"
    " uint32[::1])"
)
def count_far(  # type: ignore[no-untyped-def]
    mixes, times, modulus, salt, fast, bits, items, ends, hits
):
    """As `count_near`, for a column beyond the caches: dealt out into parts, then part by part.

    A part has 2**`bits` rows, `bits` at most `ROW_BITS`; `items` uint32[P, I] and `ends` [P]: room
    for what is dealt out, I above the tile; a part that fills up is counted at once. Gives nothing
    of meaning.
    """
    rows = np.empty(TILE, np.uint32)
    parts, room = items.shape
    flat = items.reshape(items.size)
    size, shift, below = 1 << bits, uint32(bits), uint32((1 << bits) - 1)
    for part in range(parts):
        ends[part] = part * room
    for begin in range(0, mixes.size, TILE):
        width = min(TILE, mixes.size - begin)
        now = rows[:width]
        add = times[begin : begin + width]
        rows_of(mixes[begin : begin + width], modulus, salt, fast, now)
        for j in range(width):
            part = int64(now[j] >> shift)
            flat[ends[part]] = (now[j] & below) | (uint32(add[j]) << _ROW_SHIFT)
            ends[part] += 1
        for part in range(parts):
            if ends[part] > (part + 1) * room - TILE:
                own = hits[part * size : min((part + 1) * size, hits.size)]
                count_items(flat[part * room : ends[part]], own, hits[:0])
                ends[part] = part * room
    touched = bring_near(hits[:size])
    for part in range(parts):
        first, end = part * size, min((part + 1) * size, hits.size)
        own, after = hits[first:end], hits[end : min(end + size, hits.size)]
        count_items(flat[part * room : ends[part]], own, after)
    return touched

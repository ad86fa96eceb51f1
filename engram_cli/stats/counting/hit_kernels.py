"""Numba kernels of the row hits: tokens to n-grams with their occurrences, and those to counters.

The n-grams of an order are told apart by their keys; see `key_kernels`.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64

from engram_cli.hashing.kernels import rows_of
from engram_cli.jit import kernel, prefetch
from engram_cli.stats.counting import LOW_BITS, SLOT_BITS, TILE, TIMES_BITS
from engram_cli.stats.counting.key_kernels import MOST_TIMES, ODD, make_keys

ROWS_AHEAD = 64  # how far ahead a counter is asked for
SLOTS_AHEAD = 16  # the same for slots of the combining table
ROW_BITS = 32 - TIMES_BITS  # an item is the row in its part of a column, and its occurrences
_LINE = 16  # counters of a cache line
_TIMES, _TIMES_SHIFT = np.uint64(MOST_TIMES), np.uint64(TIMES_BITS)
_SLOT_SHIFT, _FURTHER_BITS = np.uint64(64 - SLOT_BITS), np.uint64(SLOT_BITS - LOW_BITS)
_FURTHER = np.uint64(2 ** (SLOT_BITS - LOW_BITS) - 1)
_ROW_SHIFT = np.uint32(ROW_BITS)
_ROWS = np.uint32(2**ROW_BITS - 1)
_FULL = np.uint64(0xFFFFFFFF)


@kernel(
    "int64(int32[::1], uint8[::1], int64, int64, int64[::1], int64, uint64[::1], uint64[::1],"
    " uint16[::1], int64[::1])"
)
def combine(  # type: ignore[no-untyped-def]
    x, seen, first, filler, multipliers, bits, slots, words, places, used
):
    """Add up the n-grams at positions first..T-1 in `slots`; those that make room for others go to
    a list.

    `x` [N-1+T] with the history first, `seen` [T], `multipliers` [n] by lag; `bits` of a token in
    a key, or 0; `slots` [131,072]: words, 0 where free; `words`, `places` [L]: the list, L above
    the tile, `used` [1] long. Gives T, or the position to go on from when the list has no room for
    a tile.
    """
    count, history = seen.size, x.size - seen.size
    high = np.empty(TILE, np.uint64)
    low = np.zeros(TILE + SLOTS_AHEAD, np.uint64)
    listed = used[0]
    for begin in range(first, count, TILE):
        if listed + TILE >= words.size:
            used[0] = listed
            return begin
        width = min(TILE, count - begin)
        fresh, slot = high[:width], low[:width]
        window = x[begin : begin + history + width]
        make_keys(window, seen[begin : begin + width], filler, multipliers, bits, fresh, slot)
        for j in range(width):
            top = (fresh[j] * ODD) >> _SLOT_SHIFT  # `place_mask`, and further bits
            slot[j] ^= (top >> _FURTHER_BITS) | ((top & _FURTHER) << uint64(LOW_BITS))
            fresh[j] <<= _TIMES_SHIFT
        for j in range(width):
            prefetch(slots, int64(low[j + SLOTS_AHEAD]))
            old = slots[slot[j]]
            seldom = old & _TIMES
            same = uint64((old ^ fresh[j]) < _TIMES)  # the same n-gram, with room for one more
            # No branch that would be guessed wrong: a product instead of a choice, and an entry of
            # the list that is written always and kept sometimes.
            slots[slot[j]] = fresh[j] + seldom * same + uint64(1)
            words[listed] = old
            places[listed] = slot[j]
            listed += int64(old != uint64(0)) & int64(uint64(1) - same)
    used[0] = listed
    return count


@kernel("int64(uint64[::1], int64, uint64[::1], uint16[::1], int64[::1])")
def empty_slots(slots, first, words, places, used):  # type: ignore[no-untyped-def]
    """Move all that `slots` hold from `first` on to the list, as in `combine`; gives their number,
    or the slot to go on from when the list is full."""
    for slot in range(first, slots.size):
        if slots[slot] != uint64(0):
            if used[0] == words.size:
                return slot
            words[used[0]] = slots[slot]
            places[used[0]] = slot
            used[0] += 1
            slots[slot] = uint64(0)
    return slots.size


@kernel("uint32(uint32[::1])")
def bring_near(hits):  # type: ignore[no-untyped-def]
    """Read counters from end to end, so that the caches hold them: random reads of the same would
    take three times as long. Gives their sum, for the compiler not to leave it out."""
    total = uint32(0)
    for i in range(hits.size):
        total += hits[i]
    return total


@kernel("void(uint64[::1], uint8[::1], int64, int64, boolean, uint32[::1])")
def count_near(mixes, times, modulus, salt, fast, hits):  # type: ignore[no-untyped-def]
    """Add `times` [n] to the counters [modulus] of the rows of `mixes` [n], which stay at 2**32-1.

    For a column that the caches hold: see `bring_near`.
    """
    rows = np.empty(TILE, np.uint32)
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
    "void(uint64[::1], uint8[::1], int64, int64, boolean, int64, uint32[:, ::1], int64[::1],"
    " uint32[::1])"
)
def deal_out(  # type: ignore[no-untyped-def]
    mixes, times, modulus, salt, fast, bits, items, ends, hits
):
    """Deal n-grams [n] out into the parts of a column beyond the caches, for `count_parts`.

    A part has 2**`bits` rows, `bits` at most `ROW_BITS`; `items` uint32[P, I], I above the tile,
    and `ends` [P]: where each part's items end in the flat `items`. A part that fills up is counted
    in `hits` at once.
    """
    rows = np.empty(TILE, np.uint32)
    parts, room = items.shape
    flat = items.reshape(items.size)
    size, shift, below = 1 << bits, uint32(bits), uint32((1 << bits) - 1)
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


@kernel("uint32(int64, uint32[:, ::1], int64[::1], uint32[::1])")
def count_parts(bits, items, ends, hits):  # type: ignore[no-untyped-def]
    """Count what `deal_out` has dealt out, part by part. Gives nothing of meaning."""
    parts, room = items.shape
    flat = items.reshape(items.size)
    size = 1 << bits
    touched = bring_near(hits[:size])
    for part in range(parts):
        first, end = part * size, min((part + 1) * size, hits.size)
        own, after = hits[first:end], hits[end : min(end + size, hits.size)]
        count_items(flat[part * room : ends[part]], own, after)
    return touched

"""Numba kernels of the growth: chunks in, least arrivals of n-grams and rows lowered."""

from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64

from engram_cli.jit import kernel
from engram_cli.stats.kernels import TILE, choose, find_slot

_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)


@kernel(
    "int64(uint64[::1], int64, uint64, int64, int64[::1], uint64[::1], uint64[::1], int64[::1])"
)
def sample_arrivals(  # type: ignore[no-untyped-def]
    hashes, first, highest, limit, begins, keys, slots, entries
):
    """Lower the arrivals of the n-grams at positions first..T-1 whose hash is at most `highest`.

    `hashes` [T]; `begins`, `keys` [s]: the segments and when they arrive; `slots` [2 S]: hash and
    least arrival of an entry, 0 where free, S a power of two; `entries` [1]. Gives T, or the
    position to go on from when there are more than `limit` entries.
    """
    count = hashes.size
    mask = uint64(slots.size // 2 - 1)
    kept = np.empty(TILE, np.int64)
    segment = 0
    for begin in range(first, count, TILE):
        here = hashes[begin : min(begin + TILE, count)]
        chosen = choose(here, highest, kept)
        for i in range(chosen):
            place = begin + kept[i]
            while segment + 1 < begins.size and begins[segment + 1] <= place:
                segment += 1
            key = here[kept[i]]
            at = find_slot(slots, key, mask)
            arrival = at + uint64(1)
            if slots[at] == 0:
                slots[at] = key
                slots[arrival] = _NEVER
                entries[0] += 1
            slots[arrival] = min(slots[arrival], keys[segment])
            if entries[0] > limit:
                return place + 1
    return count


@kernel("void(uint64[::1], uint64[::1], uint64[::1])")
def fill_arrivals(hashes, arrivals, slots):  # type: ignore[no-untyped-def]
    """Put different entries into empty `slots` [2 S]."""
    mask = uint64(slots.size // 2 - 1)
    for i in range(hashes.size):
        at = find_slot(slots, hashes[i], mask)
        slots[at] = hashes[i]
        slots[at + uint64(1)] = arrivals[i]


@kernel("void(uint32[::1], uint32, uint32, int64[::1], uint64[::1], uint64[::1])")
def observe_rows(rows, mask, shift, begins, keys, arrivals):  # type: ignore[no-untyped-def]
    """Lower the arrivals of the rows r of T tokens with r & mask == 0; theirs is at r >> shift."""
    kept = np.empty(TILE, np.uint32)
    for segment in range(begins.size):
        end = begins[segment + 1] if segment + 1 < begins.size else rows.size
        key = keys[segment]
        for begin in range(begins[segment], end, TILE):
            own = rows[begin : min(begin + TILE, end)]
            chosen = 0
            for j in range(own.size):
                kept[chosen] = own[j]
                chosen += int64((own[j] & mask) == uint32(0))
            for i in range(chosen):
                at = kept[i] >> shift
                arrivals[at] = min(arrivals[at], key)

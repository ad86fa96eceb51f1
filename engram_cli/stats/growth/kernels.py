"""Numba kernels of the growth: passages in, least arrivals of n-grams and rows lowered."""

from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64

from engram_cli.hashing.jit import kernel
from engram_cli.stats.kernels import TILE, ngram_hashes

_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)


@kernel(
    "int64(int32[::1], uint8[::1], int64, int64, int64, uint64, int64, int64[::1], uint64[::1],"
    " uint64[::1], int64[::1])"
)
def sample_arrivals(  # type: ignore[no-untyped-def]
    x, seen, filler, order, first, highest, limit, begins, keys, slots, entries
):
    """Lower the arrivals of the n-grams at positions first..T-1 whose hash is at most `highest`.

    `begins`, `keys` [s]: the stretches and when they arrive; `slots` [2 S]: hash and least arrival
    of an entry, 0 where free, S a power of two; `entries` [1]. Gives T, or the position to go on
    from when there are more than `limit` entries.
    """
    count = seen.size
    history = x.size - count
    mask = uint64(slots.size // 2 - 1)
    hashes = np.empty(TILE, np.uint64)
    kept = np.empty(TILE, np.int64)
    stretch = 0
    for begin in range(first, count, TILE):
        width = min(TILE, count - begin)
        reach = seen[begin : begin + width]
        here = hashes[:width]
        ngram_hashes(x[begin : begin + history + width], reach, filler, order, here)
        chosen = 0
        for j in range(width):
            kept[chosen] = j
            chosen += int64(here[j] <= highest)
        for i in range(chosen):
            place = begin + kept[i]
            while stretch + 1 < begins.size and begins[stretch + 1] <= place:
                stretch += 1
            key = here[kept[i]]
            at = key & mask
            while slots[at << uint64(1)] != key and slots[at << uint64(1)] != 0:
                at = (at + uint64(1)) & mask
            arrival = (at << uint64(1)) + uint64(1)
            if slots[at << uint64(1)] == 0:
                slots[at << uint64(1)] = key
                slots[arrival] = _NEVER
                entries[0] += 1
            slots[arrival] = min(slots[arrival], keys[stretch])
            if entries[0] > limit:
                return place + 1
    return count


@kernel("void(uint64[::1], uint64[::1], uint64[::1])")
def fill_arrivals(hashes, arrivals, slots):  # type: ignore[no-untyped-def]
    """Put different entries into empty `slots` [2 S]."""
    mask = uint64(slots.size // 2 - 1)
    for i in range(hashes.size):
        at = hashes[i] & mask
        while slots[at << uint64(1)] != 0:
            at = (at + uint64(1)) & mask
        slots[at << uint64(1)] = hashes[i]
        slots[(at << uint64(1)) + uint64(1)] = arrivals[i]


@kernel("void(uint32[::1], uint32, uint32, int64[::1], uint64[::1], uint64[::1])")
def watch_rows(rows, mask, shift, begins, keys, arrivals):  # type: ignore[no-untyped-def]
    """Lower the arrivals of the rows r of T tokens with r & mask == 0; theirs is at r >> shift."""
    for stretch in range(begins.size):
        end = begins[stretch + 1] if stretch + 1 < begins.size else rows.size
        own = rows[begins[stretch] : end]
        key = keys[stretch]
        for j in range(own.size):
            if own[j] & mask == uint32(0):
                at = own[j] >> shift
                arrivals[at] = min(arrivals[at], key)

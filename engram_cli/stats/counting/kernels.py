"""Numba kernels of the counting: rows and n-grams in, counts changed in place."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint32, uint64

from engram_cli.jit import bits_of, kernel, lanes_at_most, lowest_bit, prefetch
from engram_cli.stats.counting import TILE

SLOTS_AHEAD = 32  # how far ahead the slot of an n-gram is asked for
ALL_AHEAD = 64  # the same where every n-gram is counted, in a table beyond the caches
_FULL = np.uint32(0xFFFFFFFF)
_ODD1, _ODD2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ODD3 = np.uint64(0x9E3779B97F4A7C15)
_RANK_SHIFT = np.uint64(61)


@kernel("void(uint32[::1], uint64[::1])")
def sum_column(hits, out):  # type: ignore[no-untyped-def]
    """Of counters [m] into `out` [6]: rows above 0, the largest, how many are full, the sum, and
    the sum of squares as high * 2**32 + low."""
    used, full, total = uint64(0), uint64(0), uint64(0)
    high, low = uint64(0), uint64(0)
    largest = uint32(0)
    for i in range(hits.size):
        hit = hits[i]
        used += uint64(hit != 0)
        full += uint64(hit == _FULL)
        largest = max(largest, hit)
        total += uint64(hit)
        square = uint64(hit) * uint64(hit)
        high += square >> uint64(32)
        low += square & uint64(0xFFFFFFFF)
    out[0], out[1], out[2], out[3] = used, uint64(largest), full, total
    out[4], out[5] = high, low


@kernel("void(uint32[::1], int64[::1])")
def bin_hits(hits, out):  # type: ignore[no-untyped-def]
    """Add to `out` [34] how many counters [m] are 0, and how many in [2**i, 2**(i+1)) at 1+i."""
    for i in range(hits.size):
        out[0 if hits[i] == 0 else int64(bits_of(float64(hits[i])) >> uint64(52)) - 1022] += 1


@kernel("void(uint32[::1], uint32[::1])")
def add_hits(hits, more):  # type: ignore[no-untyped-def]
    """Add counters to counters, staying at 2**32-1."""
    for i in range(hits.size):
        hits[i] = uint32(min(uint64(hits[i]) + uint64(more[i]), uint64(_FULL)))


@kernel("uint64(uint64)")
def scramble(value):  # type: ignore[no-untyped-def]
    """The finaliser of SplitMix64: a bijection of 64 bits that looks random."""
    value = (value ^ (value >> uint64(30))) * _ODD1
    value = (value ^ (value >> uint64(27))) * _ODD2
    return value ^ (value >> uint64(31))


@kernel("void(int32[::1], uint8[::1], int64, int64, uint64[::1])")
def ngram_hashes(x, seen, filler, order, out):  # type: ignore[no-untyped-def]
    """The 64-bit hash of the n-gram at each of T positions into `out` [T]; never 0.

    `x` [N-1+T] with the history first, `seen` [T]. Two tokens at a time are scrambled together, so
    that different 2-grams never meet.
    """
    history = x.size - seen.size
    blank = uint64(filler)
    for begin in range(0, seen.size, TILE):
        width = min(TILE, seen.size - begin)
        reach = seen[begin : begin + width]
        tile = out[begin : begin + width]
        least = order
        for j in range(width):
            least = min(least, int64(reach[j]))
            tile[j] = uint64(0)
        for lag in range(0, order, 2):
            at = history + begin - lag
            newer = x[at : at + width]
            if lag + 1 == order:
                for j in range(width):
                    low = uint64(uint32(newer[j])) if reach[j] > lag else blank
                    tile[j] = scramble(tile[j] ^ low)
                continue
            older = x[at - 1 : at - 1 + width]
            if lag + 1 < least:  # nothing is blocked here: nearly everywhere
                for j in range(width):
                    pair = uint64(uint32(newer[j])) | (uint64(uint32(older[j])) << uint64(32))
                    tile[j] = scramble(tile[j] ^ pair)
            else:
                for j in range(width):
                    low = uint64(uint32(newer[j])) if reach[j] > lag else blank
                    high = uint64(uint32(older[j])) if reach[j] > lag + 1 else blank
                    tile[j] = scramble(tile[j] ^ (low | (high << uint64(32))))
        for j in range(width):
            tile[j] = max(tile[j], uint64(1))


@kernel("int64(uint64[::1], uint64, int64[::1])")
def choose(hashes, highest, kept):  # type: ignore[no-untyped-def]
    """The positions of the hashes up to `highest` into `kept`; gives how many there are."""
    chosen = int64(0)
    whole = hashes.size & ~63
    for begin in range(0, whole, 64):
        bits = lanes_at_most(hashes, begin, highest)
        while bits:
            kept[chosen] = begin + lowest_bit(bits)
            chosen += 1
            bits &= bits - uint64(1)
    for j in range(whole, hashes.size):
        if hashes[j] <= highest:
            kept[chosen] = j
            chosen += 1
    return chosen


@kernel("int64(int64[::1], uint64[::1], int64, int64, uint64, int64[::1], uint64[::1])")
def draw_positions(  # type: ignore[no-untyped-def]
    begins, keys, count, carried, highest, places, priorities
):
    """The positions 0..count-1 whose priority is at most `highest`, into `places`, and their
    `priorities` [count]; gives how many there are.

    `begins`, `keys` [S]: segments; `carried`: tokens of the first that were before. Of 8 tokens
    next to each other in a segment each has another upper 3 bits of the priority, and they share
    the others: so one hash is enough for 8 positions once `highest` is below an eighth.
    """
    drawn = 0
    ranks = int64(highest >> _RANK_SHIFT) + 1
    for segment in range(begins.size):
        first = 0 if segment else carried
        end = begins[segment + 1] if segment + 1 < begins.size else count
        last = first + end - begins[segment]
        for block in range(first >> 3, (last + 7) >> 3):
            bits = scramble(keys[segment] ^ (uint64(block) * _ODD3))
            for rank in range(ranks):
                at = (block << 3) + ((int64(bits & uint64(7)) + rank) & 7)
                priority = (uint64(rank) << _RANK_SHIFT) | (bits >> uint64(3))
                if priority <= highest and first <= at and at < last:
                    places[drawn] = begins[segment] + at - first
                    priorities[drawn] = priority
                    drawn += 1
    return drawn


@kernel("void(int32[::1], uint8[::1], int32, int64[::1], int32[:, ::1])")
def ngrams_at(x, seen, filler, places, out):  # type: ignore[no-untyped-def]
    """The n-grams that end at `places` [S] into `out` [S, n], oldest token first; `x`, `seen` as
    `ngram_hashes` takes them."""
    history, order = x.size - seen.size, out.shape[1]
    for i in range(places.size):
        place = places[i]
        for lag in range(order):
            token = x[history + place - lag] if seen[place] > lag else filler
            out[i, order - 1 - lag] = token


@kernel("void(uint64[::1], uint8[::1])")
def set_bits(hashes, bits):  # type: ignore[no-untyped-def]
    """Set the bit of each hash, by its lower bits, in `bits`, a power of two bytes."""
    mask = uint64(bits.size * 8 - 1)
    for i in range(hashes.size):
        at = hashes[i] & mask
        bits[at >> uint64(3)] |= np.uint8(1) << np.uint8(at & uint64(7))


@kernel("uint64(uint64[::1], uint64, uint64)")
def find_slot(slots, key, mask):  # type: ignore[no-untyped-def]
    """Where in `slots` [2 S] an entry is, or is to be: its place or the first free one."""
    at = (key & mask) << uint64(1)
    while slots[at] != key and slots[at] != 0:
        at = (at + uint64(2)) & ((mask << uint64(1)) | uint64(1))
    return at


@kernel(
    "int64(uint64[::1], int32[::1], uint8[::1], int64, int64, uint64, int64, uint64[::1],"
    " int32[:, ::1], int64[::1])"
)
def sample_ngrams(  # type: ignore[no-untyped-def]
    hashes, x, seen, filler, first, highest, limit, slots, tokens, entries
):
    """Count the n-grams at positions first..T-1 whose hash is at most `highest`.

    `hashes` [T] as `ngram_hashes` gives them; `x`, `seen` as it takes them; `slots` [2 S]: hash and
    count of an entry, 0 where free, S a power of two; `tokens` [S, order]: its tokens, oldest
    first; `entries` [1]: how many there are. Gives T, or the position to go on from when there are
    more than `limit`.
    """
    count = seen.size
    history = x.size - count
    order = tokens.shape[1]
    mask = uint64(slots.size // 2 - 1)
    kept = np.empty(TILE, np.int64)
    for begin in range(first, count, TILE):
        width = min(TILE, count - begin)
        here = hashes[begin : begin + width]
        chosen = choose(here, highest, kept)
        for i in range(chosen):
            if i + SLOTS_AHEAD < chosen:
                ahead = here[kept[i + SLOTS_AHEAD]] & mask
                prefetch(slots, int64(ahead << uint64(1)))
            key = here[kept[i]]
            at = find_slot(slots, key, mask)
            slots[at + uint64(1)] += uint64(1)
            if slots[at] == 0:
                slots[at] = key
                place = begin + kept[i]
                for lag in range(order):
                    blocked = seen[place] <= lag
                    token = filler if blocked else x[history + place - lag]
                    tokens[at >> uint64(1), order - 1 - lag] = token
                entries[0] += 1
                if entries[0] > limit:
                    return place + 1
    return count


@kernel("void(uint64[::1], uint64, int64[::1])")
def bin_hashes(slots, shift, bins):  # type: ignore[no-untyped-def]
    """Count the hashes h of the entries of `slots` [2 S] in `bins`, at h >> shift."""
    for at in range(0, slots.size, 2):
        bins[slots[at] >> shift] += int64(slots[at] != 0)


@kernel("void(uint64[::1], uint64, uint64, uint64[::1])")
def hashes_of_bin(slots, shift, wanted, out):  # type: ignore[no-untyped-def]
    """Write the hashes that `bin_hashes` counts in the bin `wanted` into `out`, of that length."""
    held = 0
    for at in range(0, slots.size, 2):
        if slots[at] >> shift == wanted and slots[at] != 0:
            out[held] = slots[at]
            held += 1


@kernel("int64(uint64[::1], int32[:, ::1], uint64)")
def drop_from(slots, tokens, threshold):  # type: ignore[no-untyped-def]
    """Drop the entries whose hash is not below `threshold`, in place; gives how many are left.

    `slots` [2 S] with a free one; `tokens` [S, order], or none. From behind a free slot on, every
    entry is taken out and put back at the first free slot for it, which is never behind its old
    one.
    """
    size = slots.size // 2
    mask = uint64(size - 1)
    free = 0
    while slots[2 * free] != 0:
        free += 1
    left = 0
    for i in range(1, size + 1):
        old = uint64(free + i) & mask
        key, value = slots[old << uint64(1)], slots[(old << uint64(1)) + uint64(1)]
        slots[old << uint64(1)] = uint64(0)
        slots[(old << uint64(1)) + uint64(1)] = uint64(0)
        if key != 0 and key < threshold:
            at = find_slot(slots, key, mask)
            slots[at], slots[at + uint64(1)] = key, value
            left += 1
            if tokens.shape[0]:
                for lag in range(tokens.shape[1]):
                    tokens[at >> uint64(1), lag] = tokens[old, lag]
    return left


@kernel("void(uint64[::1], uint64[::1], int32[:, ::1], uint64[::1], int32[:, ::1])")
def fill_slots(hashes, counts, ngrams, slots, tokens):  # type: ignore[no-untyped-def]
    """Put S' different entries into empty `slots` [2 S] and `tokens` [S, order]."""
    mask = uint64(slots.size // 2 - 1)
    for i in range(hashes.size):
        at = hashes[i] & mask
        while slots[at << uint64(1)] != 0:
            at = (at + uint64(1)) & mask
        slots[at << uint64(1)] = hashes[i]
        slots[(at << uint64(1)) + uint64(1)] = counts[i]
        for lag in range(tokens.shape[1]):
            tokens[at, lag] = ngrams[i, lag]


@kernel(
    "int64(int32[::1], uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1],"
    " int64[::1])"
)
def count_ngrams(  # type: ignore[no-untyped-def]
    x, seen, filler, order, first, limit, slots, tokens, state
):
    """Count every n-gram at positions first..T-1.

    `slots` [2 S] as in `sample_ngrams`; `tokens` [B, order]: new n-grams one after another, oldest
    token first; `state` [2]: entries of the table, n-grams in `tokens`. Gives T, or the position to
    go on from when there are `limit` entries or `tokens` is full.
    """
    count = seen.size
    history = x.size - count
    mask = uint64(slots.size // 2 - 1)
    hashes = np.empty(TILE, np.uint64)
    for begin in range(first, count, TILE):
        width = min(TILE, count - begin)
        here = hashes[:width]
        reach = seen[begin : begin + width]
        ngram_hashes(x[begin : begin + history + width], reach, filler, order, here)
        for j in range(width):
            if j + ALL_AHEAD < width:
                prefetch(slots, int64((here[j + ALL_AHEAD] & mask) << uint64(1)))
            key = here[j]
            at = (key & mask) << uint64(1)
            while slots[at] != key and slots[at] != 0:
                at = (at + uint64(2)) & ((mask << uint64(1)) | uint64(1))
            slots[at + uint64(1)] += uint64(1)
            if slots[at] == 0:
                slots[at] = key
                place = begin + j
                for lag in range(order):
                    blocked = seen[place] <= lag
                    tokens[state[1], order - 1 - lag] = (
                        filler if blocked else x[history + place - lag]
                    )
                state[0] += 1
                state[1] += 1
                if state[0] >= limit or state[1] >= tokens.shape[0]:
                    return place + 1
    return count


@kernel("void(uint64[::1], uint64[::1])")
def move_slots(old, slots):  # type: ignore[no-untyped-def]
    """Put the entries of `old` [2 S] into empty, larger `slots`."""
    mask = uint64(slots.size // 2 - 1)
    for i in range(0, old.size, 2):
        key = old[i]
        if key != 0:
            at = key & mask
            while slots[at << uint64(1)] != 0:
                at = (at + uint64(1)) & mask
            slots[at << uint64(1)] = key
            slots[(at << uint64(1)) + uint64(1)] = old[i + 1]


@kernel("void(uint64[::1], uint64[::1], uint64[::1])")
def find_counts(hashes, slots, counts):  # type: ignore[no-untyped-def]
    """The counts [n] of the entries with these `hashes` [n], all of them in `slots` [2 S]."""
    mask = uint64(slots.size // 2 - 1)
    led = max(hashes.size - ALL_AHEAD, 0)
    lead = hashes[hashes.size - led :]
    for i in range(hashes.size):
        if i < led:
            prefetch(slots, int64((lead[i] & mask) << uint64(1)))
        at = hashes[i] & mask
        while slots[at << uint64(1)] != hashes[i]:
            at = (at + uint64(1)) & mask
        counts[i] = slots[(at << uint64(1)) + uint64(1)]

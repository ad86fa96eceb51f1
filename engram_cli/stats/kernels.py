"""Numba kernels of the counting: rows and n-grams in, counts changed in place."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint32, uint64

from engram_cli.hashing.jit import bits_of, kernel, prefetch

# How far ahead the counter of a row is asked for. It does not matter much between 32 and 512; at 0
# the rows of a table beyond the caches are counted at a third of the speed.
ROWS_AHEAD = 256
SLOTS_AHEAD = 16
ALL_AHEAD = 64  # the same where every n-gram is counted, in a table beyond the caches
TILE = 2048
_FULL = np.uint32(0xFFFFFFFF)
_ODD1, _ODD2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@kernel("void(uint32[:, ::1], int64[::1], int64[::1], uint32[::1])")
def count_columns(rows, offsets, moduli, hits):  # type: ignore[no-untyped-def]
    """Add 1 to the counter of each row, column by column; counters stay at 2**32-1.

    `rows` [C, T] head-local; `offsets`, `moduli` [C]: where a column's counters lie in `hits`.
    """
    count = rows.shape[1]
    led = max(count - ROWS_AHEAD, 0)
    for column in range(rows.shape[0]):
        own = hits[offsets[column] : offsets[column] + moduli[column]]
        now = rows[column]
        lead = now[count - led :]
        for j in range(led):
            prefetch(own, int64(lead[j]))
            hit = own[now[j]]
            own[now[j]] = uint32(hit + uint32(hit != _FULL))
        for j in range(led, count):
            hit = own[now[j]]
            own[now[j]] = uint32(hit + uint32(hit != _FULL))


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
    width = out.size
    for j in range(width):
        out[j] = uint64(0)
    for lag in range(0, order, 2):
        newer = x[history - lag : history - lag + width]
        if lag + 1 < order:
            older = x[history - lag - 1 : history - lag - 1 + width]
            for j in range(width):
                low = uint64(uint32(newer[j])) if seen[j] > lag else blank
                high = uint64(uint32(older[j])) if seen[j] > lag + 1 else blank
                out[j] = scramble(out[j] ^ (low | (high << uint64(32))))
        else:
            for j in range(width):
                low = uint64(uint32(newer[j])) if seen[j] > lag else blank
                out[j] = scramble(out[j] ^ low)
    for j in range(width):
        out[j] = max(out[j], uint64(1))


@kernel(
    "int64(int32[::1], uint8[::1], int64, int64, int64, uint64, int64, uint64[::1], int32[:, ::1],"
    " int64[::1])"
)
def sample_ngrams(  # type: ignore[no-untyped-def]
    x, seen, filler, order, first, highest, limit, slots, tokens, entries
):
    """Count the n-grams at positions first..T-1 whose hash is at most `highest`.

    `slots` [2 S]: hash and count of an entry, 0 where free, S a power of two; `tokens` [S, order]:
    its tokens, oldest first; `entries` [1]: how many there are. Gives T, or the position to go on
    from when there are more than `limit`.
    """
    count = seen.size
    history = x.size - count
    mask = uint64(slots.size // 2 - 1)
    hashes = np.empty(TILE, np.uint64)
    kept = np.empty(TILE, np.int64)
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
            if i + SLOTS_AHEAD < chosen:
                ahead = here[kept[i + SLOTS_AHEAD]] & mask
                prefetch(slots, int64(ahead << uint64(1)))
            key = here[kept[i]]
            at = key & mask
            while slots[at << uint64(1)] != key and slots[at << uint64(1)] != 0:
                at = (at + uint64(1)) & mask
            slots[(at << uint64(1)) + uint64(1)] += uint64(1)
            if slots[at << uint64(1)] == 0:
                slots[at << uint64(1)] = key
                place = begin + kept[i]
                for lag in range(order):
                    blocked = seen[place] <= lag
                    tokens[at, order - 1 - lag] = filler if blocked else x[history + place - lag]
                entries[0] += 1
                if entries[0] > limit:
                    return place + 1
    return count


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

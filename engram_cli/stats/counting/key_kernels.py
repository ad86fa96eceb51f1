"""Numba kernels of n-gram keys: 72 bits that say which n-gram it is.

The key of an n-gram has `bits` bits for each token, 16 or more, the newest lowest. Where that is
too much, `bits` is 0 and the key is the mix that the hash of every head starts from: n-grams of
equal mix have equal rows. A key is kept in two pieces: the lower 16 bits, and the others.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64, uint32, uint64

from engram_cli.hashing.kernels import mix_ngrams
from engram_cli.jit import kernel, prefetch
from engram_cli.stats.counting import LOW_BITS, TILE, TIMES_BITS
from engram_cli.stats.counting.kernels import SLOTS_AHEAD, choose, find_slot, scramble

MOST_TIMES = 2**TIMES_BITS - 1
_TIMES, _TIMES_SHIFT = np.uint64(MOST_TIMES), np.uint64(TIMES_BITS)
_LOW, _LOW_SHIFT = np.uint64(2**LOW_BITS - 1), np.uint64(LOW_BITS)
ODD = np.uint64(0x9E3779B97F4A7C15)
_PLACE_SHIFT = np.uint64(64 - LOW_BITS)


@kernel("uint64(uint64)")
def place_mask(high):  # type: ignore[no-untyped-def]
    """What the lower bits of a key are scrambled with, by its upper bits."""
    return (high * ODD) >> _PLACE_SHIFT


@kernel("void(int32[::1], uint8[::1], int64, int64[::1], int64, uint64[::1], uint64[::1])")
def make_keys(x, seen, filler, multipliers, bits, high, low):  # type: ignore[no-untyped-def]
    """Write the keys at T positions into `high` and `low` [T]; other arguments as `mix_ngrams`."""
    width = high.size
    if bits == 0:
        mix_ngrams(x, seen, filler, multipliers, 0, high.view(np.int64))
        for j in range(width):
            low[j] = high[j] & _LOW
            high[j] >>= _LOW_SHIFT
        return
    history = x.size - width
    blank = uint64(filler)
    least = multipliers.size
    for j in range(width):
        least = min(least, int64(seen[j]))
    for lag in range(multipliers.size):
        lagged = x[history - lag : history - lag + width]
        shift = uint64(lag * bits - LOW_BITS)
        if lag == 0:
            for j in range(width):
                token = uint64(uint32(lagged[j])) if seen[j] else blank
                low[j] = token & _LOW
                high[j] = token >> _LOW_SHIFT
        elif lag < least:  # every position sees this token: nearly everywhere
            for j in range(width):
                high[j] |= uint64(uint32(lagged[j])) << shift
        else:
            for j in range(width):
                high[j] |= (uint64(uint32(lagged[j])) if seen[j] > lag else blank) << shift


@kernel("void(uint64[::1], uint64[::1], int64, int64, uint64[::1])")
def key_tokens(high, low, bits, lag, out):  # type: ignore[no-untyped-def]
    """Write the token at a lag of each key [T] into `out` [T]."""
    mask = (uint64(1) << uint64(bits)) - uint64(1)
    if lag == 0:
        for j in range(out.size):
            out[j] = (low[j] | (high[j] << _LOW_SHIFT)) & mask
    else:
        shift = uint64(lag * bits - LOW_BITS)
        for j in range(out.size):
            out[j] = (high[j] >> shift) & mask


@kernel("void(uint64[::1], uint16[::1], uint64[::1], uint64[::1], uint8[::1])")
def split_words(words, places, high, low, times):  # type: ignore[no-untyped-def]
    """Write the keys and the occurrences of words [T] at places [T]; `times` may be empty."""
    for j in range(words.size):
        high[j] = words[j] >> _TIMES_SHIFT
        low[j] = uint64(places[j]) ^ place_mask(high[j])
    for j in range(times.size):
        times[j] = words[j] & _TIMES


@kernel("void(uint64[::1], uint16[::1], int64[::1], int64, uint64[::1], uint8[::1])")
def key_mixes(words, places, multipliers, bits, mixes, times):  # type: ignore[no-untyped-def]
    """Write the mix and the occurrences of each n-gram [n]; `mixes` may be `words` itself."""
    high, low = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
    tokens = np.empty(TILE, np.uint64)
    for begin in range(0, words.size, TILE):
        end = min(begin + TILE, words.size)
        upper, lower, own = high[: end - begin], low[: end - begin], tokens[: end - begin]
        split_words(words[begin:end], places[begin:end], upper, lower, times[begin:end])
        mix = mixes[begin:end]
        if bits == 0:
            for j in range(mix.size):
                mix[j] = lower[j] | (upper[j] << _LOW_SHIFT)
            continue
        for lag in range(multipliers.size):
            key_tokens(upper, lower, bits, lag, own)
            multiplier = uint64(multipliers[lag])
            if lag == 0:
                for j in range(mix.size):
                    mix[j] = own[j] * multiplier
            else:
                for j in range(mix.size):
                    mix[j] ^= own[j] * multiplier


@kernel("int64(uint64[::1], uint16[::1], int64, int64, uint64, uint64[::1], uint32[::1])")
def choose_keys(words, places, bits, order, highest, hashes, chosen):  # type: ignore[no-untyped-def]
    """Write the hashes up to `highest` of n-grams [n] of an order, and which n-grams these are.

    `words`, `places` [n], of keys of `bits` bits a token; `hashes`, `chosen` [n]: room for all.
    Gives how many there are.
    """
    high, low = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
    own, tile = np.empty((order, TILE), np.uint64), np.empty(TILE, np.uint64)
    kept = np.empty(TILE, np.int64)
    none = np.empty(0, np.uint8)
    found = int64(0)
    for begin in range(0, words.size, TILE):
        end = min(begin + TILE, words.size)
        width = end - begin
        here = tile[:width]
        split_words(words[begin:end], places[begin:end], high[:width], low[:width], none)
        for lag in range(order):
            key_tokens(high[:width], low[:width], bits, lag, own[lag, :width])
        here[:] = uint64(0)
        for lag in range(0, order, 2):
            newer, older = own[lag, :width], own[min(lag + 1, order - 1), :width]
            shift = (
                uint64(32) if lag + 1 < order else uint64(0)
            )  # a lone token is OR-ed with itself
            for j in range(width):
                here[j] = scramble(here[j] ^ (newer[j] | (older[j] << shift)))
        for j in range(width):
            here[j] = max(here[j], uint64(1))
        for i in range(choose(here, highest, kept)):
            hashes[found] = here[kept[i]]
            chosen[found] = begin + kept[i]
            found += 1
    return found


@kernel(
    "int64(uint64[::1], uint16[::1], int64, uint64[::1], uint32[::1], int64, uint64, int64,"
    " uint64[::1], int32[:, ::1], int64[::1])"
)
def sample_keys(  # type: ignore[no-untyped-def]
    words, places, bits, hashes, chosen, first, highest, limit, slots, tokens, entries
):
    """Count the n-grams first..C-1 of those chosen, with a hash of at most `highest`, as often as
    they occurred.

    `words`, `places`, `bits`, `hashes`, `chosen` [C]: as in `choose_keys`; the rest as in
    `kernels.sample_ngrams`. Gives C, or the index to go on from when there are more than `limit`
    entries.
    """
    order = tokens.shape[1]
    mask, token = uint64(slots.size // 2 - 1), (uint64(1) << uint64(bits)) - uint64(1)
    for i in range(first, hashes.size):
        if i + SLOTS_AHEAD < hashes.size:
            prefetch(slots, int64((hashes[i + SLOTS_AHEAD] & mask) << uint64(1)))
        key = hashes[i]
        if key > highest:
            continue
        at, index = find_slot(slots, key, mask), int64(chosen[i])
        slots[at + uint64(1)] += words[index] & _TIMES
        if slots[at] == 0:
            slots[at] = key
            high = words[index] >> _TIMES_SHIFT
            low = uint64(places[index]) ^ place_mask(high)
            tokens[at >> uint64(1), order - 1] = int32((low | (high << _LOW_SHIFT)) & token)
            for lag in range(1, order):
                own = (high >> uint64(lag * bits - LOW_BITS)) & token
                tokens[at >> uint64(1), order - 1 - lag] = int32(own)
            entries[0] += 1
            if entries[0] > limit:
                return i + 1
    return hashes.size

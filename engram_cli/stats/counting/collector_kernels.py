"""Numba kernels of the collectors: first arrivals of n-grams and rows, stack distances, hits."""

from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64

from engram_cli.jit import kernel, lanes_without, lowest_bit
from engram_cli.stats.counting import TILE
from engram_cli.stats.counting.kernels import choose, find_slot

_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)
_SPREAD = np.uint32(0x9E3779B1)


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
    for segment in range(begins.size):
        end = begins[segment + 1] if segment + 1 < begins.size else rows.size
        key = keys[segment]
        whole = begins[segment] + ((end - begins[segment]) & ~63)
        for begin in range(begins[segment], whole, 64):
            bits = lanes_without(rows, begin, mask)
            while bits:
                at = rows[begin + lowest_bit(bits)] >> shift
                if key < arrivals[at]:
                    arrivals[at] = key
                bits &= bits - uint64(1)
        for j in range(whole, end):
            at = rows[j] >> shift
            if rows[j] & mask == uint32(0) and key < arrivals[at]:
                arrivals[at] = key


@kernel("uint32(uint32)")
def place(row):  # type: ignore[no-untyped-def]
    """A pseudo-random place of a row among 2**32: a bijection."""
    value = uint32((row ^ (row >> uint32(15))) * _SPREAD)
    value = uint32((value ^ (value >> uint32(13))) * uint32(0x85EBCA6B))
    return uint32(value ^ (value >> uint32(16)))


@kernel("int64(int64, uint32)")
def count_sampled(rows, highest):  # type: ignore[no-untyped-def]
    """How many rows below `rows` have a place of at most `highest`."""
    count = int64(0)
    for row in range(rows):
        count += int64(place(uint32(row)) <= highest)
    return count


@kernel("void(int64[::1], int64, int64)")
def add(tree, at, value):  # type: ignore[no-untyped-def]
    """Add to the entry `at` of a Fenwick tree."""
    at += 1
    while at < tree.size:
        tree[at] += value
        at += at & -at


@kernel("void(uint64[::1], int64[::1], int64[::1])")
def renumber(slots, tree, state):  # type: ignore[no-untyped-def]
    """Give the rows in `slots` the times 0, 1, ... in the order they were last used."""
    used = np.empty(slots.size // 2, np.int64)
    count = 0
    for at in range(slots.size // 2):
        if slots[2 * at] != 0:
            used[count] = at
            count += 1
    times = np.empty(count, np.int64)
    for i in range(count):
        times[i] = int64(slots[2 * used[i] + 1])
    order = np.argsort(times)
    tree[:] = 0
    for i in range(count):
        slots[2 * used[order[i]] + 1] = uint64(i)
        add(tree, int64(i), int64(1))
    state[0] = count
    state[1] = count


@kernel("int64(uint32, uint32, uint64[::1], int64[::1], int64[::1])")
def use(row, key, slots, tree, state):  # type: ignore[no-untyped-def]
    """Use one row of the sample, whose place is `key`; gives its stack distance, -1 for none.

    The rest as in `stack_distances`.
    """
    mask = uint64(slots.size // 2 - 1)
    name = uint64(row) + uint64(1)
    at = uint64(key) & mask
    while slots[at << uint64(1)] != name and slots[at << uint64(1)] != 0:
        at = (at + uint64(1)) & mask
    if state[0] + 1 >= tree.size:
        renumber(slots, tree, state)
    now, distance = state[0], int64(-1)
    time = (at << uint64(1)) + uint64(1)
    if slots[at << uint64(1)] == 0:
        slots[at << uint64(1)] = name
        state[1] += 1
    else:
        before = int64(slots[time])
        older = int64(0)
        node = before + 1
        while node > 0:
            older += tree[node]
            node -= node & -node
        distance = state[1] - older
        add(tree, before, int64(-1))
    slots[time] = uint64(now)
    add(tree, now, int64(1))
    state[0] = now + 1
    return distance


@kernel("void(uint32[::1], uint32, uint64[::1], int64[::1], int64[::1], uint8[::1], int64[:, ::1])")
def stack_distances(rows, highest, slots, tree, state, classes, found):  # type: ignore[no-untyped-def]
    """Count the look-ups of the rows whose place is at most `highest` by their stack distances.

    `slots` [2 S]: row + 1 and the time of its last use, 0 where free, S a power of two; `tree`: a
    Fenwick tree over times, 1 where a row was last used; `state` [2]: the next time, rows in use;
    `classes` [d]: the class of a distance, which is the number of other rows used since; `found`
    [groups of rows, a power of two; classes and one more, that of first uses].
    """
    first, group = found.shape[1] - 1, uint32(found.shape[0] - 1)
    keys = np.empty(TILE, np.uint32)
    kept = np.empty(TILE, np.int64)
    for begin in range(0, rows.size, TILE):
        own = rows[begin : min(begin + TILE, rows.size)]
        here = keys[: own.size]
        for j in range(own.size):
            here[j] = place(own[j])
        chosen = 0
        for j in range(own.size):
            kept[chosen] = j
            chosen += int64(here[j] <= highest)
        for i in range(chosen):
            key = here[kept[i]]
            distance = use(own[kept[i]], key, slots, tree, state)
            found[key & group, first if distance < 0 else int64(classes[distance])] += 1


@kernel("int64(uint32[::1], int64[::1])")
def hit_histogram(hits, below):  # type: ignore[no-untyped-def]
    """Count in `below` [b] the rows with 0..b-1 hits; gives how many have more."""
    more = int64(0)
    for i in range(hits.size):
        if int64(hits[i]) < below.size:
            below[hits[i]] += 1
        else:
            more += 1
    return more

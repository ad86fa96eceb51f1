"""Triton functions that say where a row is: among hot rows, or in the memory of its owner."""

from __future__ import annotations

import triton
import triton.language as tl

COUNTERS = 64  # pairs of sums that programs share, 64 bytes apart: one alone would be a queue
_COUNTERS = tl.constexpr(COUNTERS)


@triton.jit
def count_bits(word):
    """Count the set bits of an int32; shifts drag the sign along, the masks drop it."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24) & 0xFF


@triton.jit
def find_hot(rows, live, words):
    """Whether rows int64[R] are hot, and the word that says so."""
    word = tl.load(words + (rows >> 5), mask=live, other=0)
    bit = (rows & 31).to(tl.int32)
    return live & (((word >> bit) & 1) != 0), word


@triton.jit
def rank_of(rows, hot, word, words, ranks):
    """Return the ranks of hot rows, int64[R]."""
    below = (1 << (rows & 31)) - 1
    rank = tl.load(ranks + (rows >> 7), mask=hot, other=0)
    rank += count_bits((word & below).to(tl.int32))
    mine = (rows >> 5) & 3
    for k in tl.static_range(3):
        earlier = tl.load(words + ((rows >> 7) << 2) + k, mask=hot & (k < mine), other=0)
        rank += count_bits(earlier)
    return rank.to(tl.int64)


@triton.jit
def of_layer(each, layer, LAYERS: tl.constexpr):
    """Return the element of a tuple with one for each layer."""
    found = each[0]
    for i in tl.static_range(1, LAYERS):
        found = tl.where(layer == i, each[i], found)
    return found


@triton.jit
def owner_address(
    addresses, layer, owner, part: tl.constexpr, LAYERS: tl.constexpr, SHARDS: tl.constexpr
):
    """Return the address of a part (0 rows, 1 scales) of a layer at each owner, int64[R].

    `addresses` are arguments of the kernel, by part, layer and rank: selecting one costs no load.
    """
    found = owner.to(tl.int64) * 0
    for k in tl.static_range(SHARDS):
        address = addresses[part * LAYERS * SHARDS + k]
        for i in tl.static_range(1, LAYERS):
            address = tl.where(layer == i, addresses[(part * LAYERS + i) * SHARDS + k], address)
        found = tl.where(owner == k, address, found)
    return found


@triton.jit
def locate(
    rows,
    live,
    layer,
    addresses,
    hot,
    hot_scales,
    words,
    ranks,
    rank,
    LAYERS: tl.constexpr,
    SHARDS: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    SCALE_BYTES: tl.constexpr,
    SCALES_HERE: tl.constexpr,
):
    """Return the addresses of rows int64[R], of their scales (rows if SCALES_HERE), who is here.

    A row is read from this GPU, of `rank`, if it is hot, and from its owner otherwise. Arguments
    are those of the kernel.
    """
    owner = (rows.to(tl.uint64) % SHARDS).to(tl.int32)
    index = (rows.to(tl.uint64) // SHARDS).to(tl.int64)
    here = live & (owner == rank)
    begin = owner_address(addresses, layer, owner, 0, LAYERS, SHARDS) + index * ROW_BYTES
    scale_begin = rows
    if not SCALES_HERE:
        scale_begin = owner_address(addresses, layer, owner, 1, LAYERS, SHARDS)
        scale_begin += index * SCALE_BYTES
    if words is not None:
        bits = of_layer(words, layer, LAYERS)
        is_copied, word = find_hot(rows, live, bits)
        place = rank_of(rows, is_copied, word, bits, of_layer(ranks, layer, LAYERS))
        copy = of_layer(hot, layer, LAYERS).to(tl.int64) + place * ROW_BYTES
        begin = tl.where(is_copied, copy, begin)
        here = here | is_copied
        if not SCALES_HERE:
            copy = of_layer(hot_scales, layer, LAYERS).to(tl.int64) + place * SCALE_BYTES
            scale_begin = tl.where(is_copied, copy, scale_begin)
    return begin, scale_begin, here


@triton.jit
def count_rows(counted, here, rows):
    """Add the lanes of a program that read from this GPU, and once all `rows` of the launch.

    Called after the rows are under way: adding first takes 0.1 us of a call of one token.
    """
    slot = counted + (tl.program_id(0) % _COUNTERS) * 8
    tl.atomic_add(slot + 1, tl.sum(here.to(tl.int64)), sem="relaxed")
    if tl.program_id(0) == 0:
        tl.atomic_add(slot, rows, sem="relaxed")

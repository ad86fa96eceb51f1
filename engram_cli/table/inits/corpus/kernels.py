"""Numba kernels of the corpus-filled inits: windows in, n-gram tallies, buckets and row sums out.

A pair is two uint64: the mix of an n-gram and `token << 32 | count`. An entry is what a bucket of
rows keeps of it: `count << 32 | row in the bucket << 20 | token`. All sums are of integers, so that
no order of work changes them. Twins: `corpus.reference`.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint32, uint64

from engram_cli.hashing.jit import bits_of, kernel
from engram_cli.table.jit import prefetch_read

TILE = 1024
AHEAD = 12  # vectors that are asked for before they are needed
TOKEN_BITS = 20
ROW_BITS = 12
_TOKENS = (1 << TOKEN_BITS) - 1
_ROWS = (1 << ROW_BITS) - 1
_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_OTHER = 0xC2B2AE3D27D4EB4F
_ROUND = np.float64(2.0**52 + 2.0**51)


@kernel("void(int32[::1], uint8[::1], int64, int64[::1], int64, int64[::1])")
def mixes(x, seen, filler, multipliers, order, out):  # type: ignore[no-untyped-def]
    """The mix of each position's `order`-gram [T]; `x` [N-1+T], `seen` [T] as in the hash."""
    history = x.size - seen.size
    for j in range(seen.size):
        out[j] = 0
    for lag in range(order):
        multiplier = multipliers[lag]
        lagged = x[history - lag : history - lag + seen.size]
        for j in range(seen.size):
            token = int64(lagged[j]) if seen[j] > lag else filler
            out[j] ^= token * multiplier


@kernel("void(int64[::1], int32[::1], int64, int64[::1], uint16[::1])")
def part_sizes(mix, tokens, shift, sizes, parts):  # type: ignore[no-untyped-def]
    """The part of each pair of `mix` [T] and `tokens` [T] by its hash, added up in `sizes`.

    `shift` is 64 - log2(parts). Tokens below 0 are no pairs.
    """
    for j in range(mix.size):
        z = (uint64(mix[j]) ^ (uint64(tokens[j]) * uint64(_OTHER))) * uint64(_GOLDEN)
        parts[j] = z >> uint64(shift)
    for j in range(mix.size):
        if tokens[j] >= 0:
            sizes[parts[j]] += 1


@kernel("void(int64[::1], int32[::1], uint16[::1], int64[::1], uint64[::1])")
def split(mix, tokens, parts, places, out):  # type: ignore[no-untyped-def]
    """Put pairs into `out`, part by part, each counting once; `places` are the parts' next ones."""
    for j in range(mix.size):
        if tokens[j] >= 0:
            place = places[parts[j]]
            places[parts[j]] = place + 1
            out[2 * place] = uint64(mix[j])
            out[2 * place + 1] = (uint64(tokens[j]) << uint64(32)) | uint64(1)


@kernel("int64(uint64[::1], uint64[::1], int64, uint64[::1])")
def unite(pairs, slots, shift, out):  # type: ignore[no-untyped-def]
    """Add up the counts of equal pairs [2 * n] in `slots` [2 * S], all free before and after.

    Writes the pairs to `out`, which may be `pairs` itself, and gives how many there are.
    """
    mask = (uint64(1) << uint64(64 - shift)) - uint64(1)
    for i in range(pairs.size // 2):
        key = pairs[2 * i]
        value = pairs[2 * i + 1]
        token = value & ~uint64(_LOW)
        z = (key ^ ((value >> uint64(32)) * uint64(_GOLDEN))) * uint64(_OTHER)
        slot = (z ^ (z >> uint64(29))) * uint64(_GOLDEN) >> uint64(shift)
        while True:
            held = slots[int64(2 * slot + 1)]
            if held == uint64(0):
                slots[int64(2 * slot)] = key
                slots[int64(2 * slot + 1)] = value
                break
            if slots[int64(2 * slot)] == key and (held & ~uint64(_LOW)) == token:
                slots[int64(2 * slot + 1)] = held + (value & uint64(_LOW))
                break
            slot = (slot + uint64(1)) & mask
    found = int64(0)
    for slot in range(slots.size // 2):
        value = slots[2 * slot + 1]
        if value != uint64(0):
            out[2 * found] = slots[2 * slot]
            out[2 * found + 1] = value
            slots[2 * slot + 1] = 0
            found += 1
    return found


@kernel("void(uint64[::1], int64, int64, boolean, uint32[::1])")
def rows_of(pairs, modulus, salt, fast, out):  # type: ignore[no-untyped-def]
    """The head-local row of each pair [2 * n]: mix XOR salt, modulo the column's modulus."""
    if fast:
        p = uint32(modulus)
        reciprocal = 1.0 / float64(modulus)
        for j in range(out.size):
            mix = int64(pairs[2 * j])
            q = uint32(bits_of(float64(mix) * reciprocal + _ROUND) & uint64(_LOW))
            s = uint32(uint32(mix & int64(_LOW)) - uint32(q * p))
            out[j] = min(s, uint32(s + p))
    else:
        for j in range(out.size):
            out[j] = uint32((int64(pairs[2 * j]) ^ salt) % modulus)


@kernel("void(uint64[::1], int64, int64, boolean, int64, int64, int64, int64[::1])")
def bucket_sizes(pairs, modulus, salt, fast, begin, end, shift, sizes):  # type: ignore[no-untyped-def]
    """Add to `sizes` [buckets] the pairs whose row is in begin..end-1, 2**shift rows a bucket."""
    rows = np.empty(TILE, np.uint32)
    span = uint32(end - begin)
    for first in range(0, pairs.size // 2, TILE):
        width = min(TILE, pairs.size // 2 - first)
        rows_of(pairs[2 * first : 2 * (first + width)], modulus, salt, fast, rows[:width])
        for j in range(width):
            local = uint32(rows[j] - uint32(begin))
            if local < span:
                sizes[int64(local >> uint32(shift))] += 1


@kernel("void(uint64[::1], int64, int64, boolean, int64, int64, int64, int64[::1], uint64[::1])")
def scatter(pairs, modulus, salt, fast, begin, end, shift, places, entries):  # type: ignore[no-untyped-def]
    """Put the same pairs into `entries`, bucket by bucket; `places` are their next ones."""
    rows = np.empty(TILE, np.uint32)
    span = uint32(end - begin)
    inside = uint64((int64(1) << shift) - 1)
    for first in range(0, pairs.size // 2, TILE):
        width = min(TILE, pairs.size // 2 - first)
        part = pairs[2 * first : 2 * (first + width)]
        rows_of(part, modulus, salt, fast, rows[:width])
        for j in range(width):
            local = uint32(rows[j] - uint32(begin))
            if local < span:
                bucket = int64(local >> uint32(shift))
                place = places[bucket]
                places[bucket] = place + 1
                value = part[2 * j + 1]
                row = uint64(local) & inside
                entries[place] = (
                    (value << uint64(32)) | (row << uint64(TOKEN_BITS)) | (value >> uint64(32))
                )


@kernel("int64(uint64[::1])")
def total(entries):  # type: ignore[no-untyped-def]
    """The sum of the counts of `entries` [n]."""
    found = uint64(0)
    for i in range(entries.size):
        found += entries[i] >> uint64(32)
    return int64(found)


@kernel(
    "void(uint64[::1], int16[:, ::1], int32[:, ::1], int64[::1])",
    "void(uint64[::1], int16[:, ::1], int64[:, ::1], int64[::1])",
)
def add_entries(entries, vectors, sums, hits):  # type: ignore[no-untyped-def]
    """Add count x `vectors`[token] [V, w] of each entry [n] to its row of `sums` [R, w], and its
    count to `hits` [R]. With int32 sums the counts of all entries must not exceed 2**16."""
    width = vectors.shape[1]
    flat = vectors.reshape(-1)
    for i in range(entries.size):
        if i + AHEAD < entries.size:
            ahead = int64(entries[i + AHEAD] & uint64(_TOKENS)) * width
            for line in range(0, width, 32):
                prefetch_read(flat, ahead + line)
        entry = entries[i]
        source = vectors[int64(entry & uint64(_TOKENS))]
        row = int64((entry >> uint64(TOKEN_BITS)) & uint64(_ROWS))
        target = sums[row]
        count = sums.dtype.type(entry >> uint64(32))
        hits[row] += int64(count)
        for j in range(width):
            target[j] += count * source[j]


@kernel(
    "void(int32[:, ::1], int64[::1], float64[::1], float64, float32[:, ::1])",
    "void(int64[:, ::1], int64[::1], float64[::1], float64, float32[:, ::1])",
)
def finish(sums, hits, mean, scale, out):  # type: ignore[no-untyped-def]
    """Rows [R, w] from sums: (sum / hits - mean) * scale, zero where nothing fell."""
    for i in range(out.shape[0]):
        source, target = sums[i], out[i]
        if hits[i] == 0:
            for j in range(out.shape[1]):
                target[j] = 0
        else:
            share = 1.0 / float64(hits[i])
            for j in range(out.shape[1]):
                target[j] = np.float32((float64(source[j]) * share - mean[j]) * scale)


@kernel("void(int16[:, ::1], int64[::1], int64[::1])")
def weighted_sum(vectors, counts, out):  # type: ignore[no-untyped-def]
    """Add counts[v] x vectors[v] of all v to `out` [w]."""
    for v in range(counts.size):
        count = counts[v]
        if count:
            source = vectors[v]
            for j in range(out.size):
                out[j] += count * source[j]


@kernel("float64(float64[::1], float64[::1])")
def _dot(a, b):  # type: ignore[no-untyped-def]
    """The dot product by four sums, of every fourth product each: a fixed order of additions."""
    s0 = s1 = s2 = s3 = 0.0
    whole = a.size - a.size % 4
    for j in range(0, whole, 4):
        s0 += a[j] * b[j]
        s1 += a[j + 1] * b[j + 1]
        s2 += a[j + 2] * b[j + 2]
        s3 += a[j + 3] * b[j + 3]
    for j in range(whole, a.size):
        s0 += a[j] * b[j]
    return (s0 + s1) + (s2 + s3)


@kernel("void(float32[:, ::1], float32[:, ::1], float32[:, ::1])")
def project(values, projection, out):  # type: ignore[no-untyped-def]
    """`out` [n, w] = values [n, d] x projection [d, w], added up from the first of d to the last.

    Not BLAS: its order of additions depends on its version, the machine and the threads.
    """
    out[:] = 0
    for begin in range(0, values.shape[1], 64):  # so much of the projection stays in the L1 cache
        end = min(begin + 64, values.shape[1])
        for i in range(values.shape[0]):
            source, target = values[i], out[i]
            for k in range(begin, end):
                value, line = source[k], projection[k]
                for j in range(target.size):
                    target[j] += value * line[j]


@kernel("void(float64[:, ::1])")
def orthonormalize(vectors):  # type: ignore[no-untyped-def]
    """Make the rows of `vectors` [m, d], m <= d, orthonormal: modified Gram-Schmidt, twice."""
    for i in range(vectors.shape[0]):
        own = vectors[i]
        for _ in range(2):
            for before in range(i):
                other = vectors[before]
                dot = _dot(own, other)
                for j in range(own.size):
                    own[j] -= dot * other[j]
        scale = 1.0 / np.sqrt(_dot(own, own))
        for j in range(own.size):
            own[j] *= scale

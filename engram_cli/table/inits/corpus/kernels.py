"""Numba kernels of the corpus-filled inits: windows in, n-gram pairs, buckets and row sums out.

A pair is two uint64: the mix of an n-gram and `token << 32 | count`. An entry is what a bucket of
rows keeps of it: `row in the bucket << 32 | value`, a value is `count << 20 | token`. All sums are
of integers, so that no order of work changes them. The plain twins are in
`tests/table/plain.py`.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint32, uint64

from engram_cli.hashing.kernels import rows_of
from engram_cli.jit import LANES, TOKEN_BITS, finish_16, kernel, prefetch, sum_16, sum_32, sum_64

TILE = 1024
START = np.uint32(2**31)  # as in `corpus.tokens`
LINE = 8  # entries of a cache line
MOST_TIMES = 2 ** (32 - TOKEN_BITS) - 1
INT32_COUNTS = 2**16  # counts x 2**15 stay in an int32
_TOKENS = (1 << TOKEN_BITS) - 1
_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_OTHER = 0xC2B2AE3D27D4EB4F


@kernel("void(uint32[::1], boolean, int64[::1])")
def count_words(words, joined, counts):  # type: ignore[no-untyped-def]
    """Add the words [T] of a token file to `counts` [V]; documents' first tokens where `joined`."""
    for j in range(words.size):
        word = words[j]
        if word < START:
            counts[word] += 1
        elif joined:
            counts[word - START] += 1


@kernel("uint64(uint64, uint64, int64)")
def hashed(mix, value, shift):  # type: ignore[no-untyped-def]
    """64 - `shift` bits that follow from a mix and the token of a value."""
    return ((mix ^ ((value >> uint64(32)) * uint64(_OTHER))) * uint64(_GOLDEN)) >> uint64(shift)


@kernel("int64(int64[::1], int32[::1], uint64[::1], int64, uint64[::1], int64)")
def combine(mix, tokens, slots, shift, out, used):  # type: ignore[no-untyped-def]
    """Add up the pairs of `mix` [T] and `tokens` [T] in `slots` [2 * S], 0 where free.

    Those that make room for others go to `out` [2 * L] after the first `used`, T + 1 more at most;
    gives how many it has then. `shift` is 64 - log2(S). Tokens below 0 are no pairs.
    """
    for j in range(mix.size):
        if tokens[j] < 0:
            continue
        key, value = uint64(mix[j]), uint64(tokens[j]) << uint64(32)
        place = int64(hashed(key, value, shift)) * 2
        older, held = slots[place], slots[place + 1]
        same = (older == key) & ((held ^ value) <= uint64(_LOW)) & (held != uint64(0))
        slots[place] = key
        slots[place + 1] = held + uint64(1) if same else value | uint64(1)
        # Written always and kept sometimes: no branch that would be guessed wrong.
        out[2 * used] = older
        out[2 * used + 1] = held
        used += int64(not same) & int64(held != uint64(0))
    return used


@kernel("int64(uint64[::1], uint64[::1], int64)")
def drain(slots, out, used):  # type: ignore[no-untyped-def]
    """Move all pairs of `slots` to `out`, as in `combine`."""
    for slot in range(slots.size // 2):
        if slots[2 * slot + 1]:
            out[2 * used] = slots[2 * slot]
            out[2 * used + 1] = slots[2 * slot + 1]
            slots[2 * slot + 1] = 0
            used += 1
    return used


@kernel("void(uint64[::1], int64, int64[::1])")
def part_sizes(pairs, shift, sizes):  # type: ignore[no-untyped-def]
    """Add to `sizes` [parts] the pairs [2 * n] of each part by hash; `shift`: 64 - log2(parts)."""
    for i in range(pairs.size // 2):
        sizes[int64(hashed(pairs[2 * i], pairs[2 * i + 1], shift))] += 1


@kernel("void(uint64[::1], int64, int64[::1], uint64[::1])")
def split(pairs, shift, places, out):  # type: ignore[no-untyped-def]
    """Put pairs into `out`, part by part; `places` are the parts' next ones."""
    for i in range(pairs.size // 2):
        part = int64(hashed(pairs[2 * i], pairs[2 * i + 1], shift))
        place = places[part]
        places[part] = place + 1
        out[2 * place] = pairs[2 * i]
        out[2 * place + 1] = pairs[2 * i + 1]
        prefetch(out, min(2 * place + LINE, out.size - 1))


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


@kernel("void(uint64[::1], uint64[::1])")
def mixes_of(pairs, out):  # type: ignore[no-untyped-def]
    """The mixes of pairs [2 * n] into `out` [n]."""
    for j in range(out.size):
        out[j] = pairs[2 * j]


@kernel("void(uint64[::1], int64, int64, boolean, int64, int64, int64, int64[::1])")
def bucket_sizes(pairs, modulus, salt, fast, begin, end, shift, sizes):  # type: ignore[no-untyped-def]
    """Add to `sizes` [buckets] the entries that `deal` makes of the same pairs."""
    rows, mixes = np.empty(TILE, np.uint32), np.empty(TILE, np.uint64)
    span = uint32(end - begin)
    for first in range(0, pairs.size // 2, TILE):
        width = min(TILE, pairs.size // 2 - first)
        part = pairs[2 * first : 2 * (first + width)]
        mixes_of(part, mixes[:width])
        rows_of(mixes[:width], modulus, salt, fast, rows[:width])
        for j in range(width):
            local = uint32(rows[j] - uint32(begin))
            if local < span:
                bucket = int64(local >> uint32(shift))
                sizes[bucket] += 1
                rest = int64(part[2 * j + 1] & uint64(_LOW)) - MOST_TIMES
                while rest > 0:
                    sizes[bucket] += 1
                    rest -= MOST_TIMES


@kernel("void(uint64[::1], int64, int64, boolean, int64, int64, int64, int64[::1], uint64[::1])")
def deal(pairs, modulus, salt, fast, begin, end, shift, places, entries):  # type: ignore[no-untyped-def]
    """Put the pairs [2 * n] whose row is in begin..end-1 into `entries`, bucket by bucket.

    2**shift rows a bucket; `places` are the buckets' next ones. A count beyond 4,095 makes several
    entries.
    """
    rows, mixes = np.empty(TILE, np.uint32), np.empty(TILE, np.uint64)
    span = uint32(end - begin)
    inside = uint32((int64(1) << shift) - 1)
    for first in range(0, pairs.size // 2, TILE):
        width = min(TILE, pairs.size // 2 - first)
        part = pairs[2 * first : 2 * (first + width)]
        mixes_of(part, mixes[:width])
        rows_of(mixes[:width], modulus, salt, fast, rows[:width])
        for j in range(width):
            local = uint32(rows[j] - uint32(begin))
            if local < span:
                bucket = int64(local >> uint32(shift))
                place = places[bucket]
                value = part[2 * j + 1]
                row = uint64(local & inside) << uint64(32)
                token = row | (value >> uint64(32))
                times = int64(value & uint64(_LOW))
                while times > MOST_TIMES:
                    entries[place] = token | (uint64(MOST_TIMES) << uint64(TOKEN_BITS))
                    place += 1
                    times -= MOST_TIMES
                entries[place] = token | (uint64(times) << uint64(TOKEN_BITS))
                places[bucket] = place + 1
                prefetch(entries, min(place + LINE, entries.size - 1))


@kernel("void(uint64[::1], int32[::1], uint32[::1])")
def sort_bucket(entries, begins, values):  # type: ignore[no-untyped-def]
    """The values of a bucket's `entries` [n] by their rows: those of row r are values[begins[r] :
    begins[r + 1]]; `begins` [rows + 2]."""
    for r in range(begins.size):
        begins[r] = 0
    for i in range(entries.size):
        begins[int64(entries[i] >> uint64(32)) + 2] += 1
    for r in range(1, begins.size):
        begins[r] += begins[r - 1]
    for i in range(entries.size):
        row = int64(entries[i] >> uint64(32)) + 1
        place = begins[row]
        begins[row] = place + 1
        values[place] = uint32(entries[i] & uint64(_LOW))


@kernel("void(uint32[::1], int64, int64, int16[::1], int64, int64[::1])")
def add_hot_row(values, begin, end, vectors, width, sums):  # type: ignore[no-untyped-def]
    """Add count x vector of values[begin:end] to `sums` [w], however many they are."""
    for i in range(begin, end):
        count = int64(values[i] >> uint32(TOKEN_BITS))
        first = int64(values[i] & uint32(_TOKENS)) * width
        for j in range(sums.size):
            sums[j] += count * int64(vectors[first + j])


@kernel("void(uint32[::1], int32[::1], int16[:, ::1], float64[::1], float64, float32[:, ::1])")
def fill_rows(values, begins, vectors, mean, scale, out):  # type: ignore[no-untyped-def]
    """Rows [R, w]: (sum of count x `vectors` / sum of counts - mean) * scale, zero for no values.

    Those of row r are values[begins[r] : begins[r + 1]]; `vectors` int16[V, W], W a multiple of 16
    and at least w.
    """
    width, wanted = vectors.shape[1], out.shape[1]
    flat, rows = vectors.reshape(vectors.size), out.reshape(out.size)
    narrow = np.empty(width, np.int32)
    wide = np.empty(wanted, np.int64)
    blocks = wanted - wanted % LANES
    for r in range(out.shape[0]):
        begin, end, place = int64(begins[r]), int64(begins[r + 1]), r * wanted
        if begin == end:
            for j in range(place, place + wanted):
                rows[j] = 0
            continue
        hits = int64(0)  # by a function of their own the next lines took 45 ns a row longer
        at = int64(0)
        while at + 64 <= width:
            hits = sum_64(values, begin, end, flat, width, at, narrow)
            at += 64
        if at + 32 <= width:
            hits = sum_32(values, begin, end, flat, width, at, narrow)
            at += 32
        if at < width:
            hits = sum_16(values, begin, end, flat, width, at, narrow)
        share = 1.0 / float64(hits)
        if hits > INT32_COUNTS:
            for j in range(wanted):
                wide[j] = 0
            add_hot_row(values, begin, end, flat, width, wide)
            for j in range(wanted):
                rows[place + j] = np.float32((float64(wide[j]) * share - mean[j]) * scale)
            continue
        for j in range(0, blocks, LANES):
            finish_16(narrow, j, share, mean, scale, rows, place + j)
        for j in range(blocks, wanted):
            rows[place + j] = np.float32((float64(narrow[j]) * share - mean[j]) * scale)


@kernel("void(uint32[::1], int32[::1], int64[::1], int16[:, ::1], int64, int64[:, ::1])")
def add_rows(values, begins, rows, vectors, sign, records):  # type: ignore[no-untyped-def]
    """Add `sign` x the values of each of `rows` [n] of a bucket to `records` [n, 1 + w].

    A record is the count of a row, then the sums of its vectors. Values, `begins` and `vectors` are
    those of `fill_rows`.
    """
    width, wanted = vectors.shape[1], records.shape[1] - 1
    flat = vectors.reshape(vectors.size)
    narrow = np.empty(width, np.int32)
    wide = np.empty(wanted, np.int64)
    for i in range(rows.size):
        begin, end = int64(begins[rows[i]]), int64(begins[rows[i] + 1])
        if begin == end:
            continue
        target, count, at = records[i], int64(0), int64(0)
        while at + 64 <= width:
            count = sum_64(values, begin, end, flat, width, at, narrow)
            at += 64
        if at + 32 <= width:
            count = sum_32(values, begin, end, flat, width, at, narrow)
            at += 32
        if at < width:
            count = sum_16(values, begin, end, flat, width, at, narrow)
        target[0] += sign * count
        if count > INT32_COUNTS:
            wide[:] = 0
            add_hot_row(values, begin, end, flat, width, wide)
            for j in range(wanted):
                target[1 + j] += sign * wide[j]
        else:
            for j in range(wanted):
                target[1 + j] += sign * int64(narrow[j])


@kernel("void(int64[:, ::1], float64[::1], float64, float32[:, ::1])")
def finish(records, mean, scale, out):  # type: ignore[no-untyped-def]
    """Rows [n, w] of records: (sums / count - mean) * scale, zero where nothing fell."""
    for i in range(out.shape[0]):
        source, target = records[i], out[i]
        if source[0] == 0:
            for j in range(target.size):
                target[j] = 0
        else:
            share = 1.0 / float64(source[0])
            for j in range(target.size):
                target[j] = np.float32((float64(source[1 + j]) * share - mean[j]) * scale)


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

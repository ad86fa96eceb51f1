"""What the kernels of a table compute, in plain NumPy: the gather, normal rows, filled rows."""

from __future__ import annotations

import ctypes
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.lookback import visible
from engram_cli.hashing.reference import hash_columns
from engram_cli.table.inits.kernels import COSINE, EXPONENT, LOGARITHM, SINE

Starts = NDArray[np.bool_]


def take_rows(
    bases: NDArray[np.uint64],
    rows: NDArray[np.int64],
    chunk_rows: int,
    row_bytes: int,
    out: NDArray[np.uint8],
) -> None:
    """Copy each row to `out` from its chunk, chunk i being mapped at `bases[i]`."""
    target = out.reshape(len(rows), row_bytes)
    chunk_of = rows // chunk_rows
    for index in np.unique(chunk_of).tolist():
        memory = (ctypes.c_uint8 * (chunk_rows * row_bytes)).from_address(int(bases[index]))
        chunk = np.ctypeslib.as_array(memory).reshape(chunk_rows, row_bytes)
        places = np.flatnonzero(chunk_of == index)
        target[places] = chunk.take(rows[places] - index * chunk_rows, axis=0)


def normal(key: int, first: int, std: np.float32, out: NDArray[np.float32]) -> None:
    """Normal values of the counters from `first` on, two a counter, into `out` float32[2 * n]."""
    low, high = words(key, first, len(out) // 2)
    radius = std * _radius(low)
    t = ((high & 0x3FFFFFFF) - 0x20000000).astype(np.float32)
    t = (t + np.float32(0.5)) * np.float32(2.0**-30)
    y = t * t
    sine = radius * (t * _horner(SINE, y))
    cosine = radius * _horner(COSINE, y)
    cosine = (cosine.view(np.int32) ^ (high & np.int32(-(2**31)))).view(np.float32)
    swap = (high & 0x40000000) != 0
    out[0::2] = np.where(swap, sine, cosine)
    out[1::2] = np.where(swap, cosine, sine)


def words(key: int, first: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The lower and upper halves of SplitMix64's outputs `first`, ... of a stream, int32[count]."""
    counters = np.arange(count, dtype=np.uint64) + np.uint64((first + 1) % 2**64)
    z = counters * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    halves = z.view(np.int32).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()


def _radius(low: NDArray[np.int32]) -> NDArray[np.float32]:
    u = ((low & 0x7FFFFFFF).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    bits = u.view(np.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3: the bits of sqrt(0.5)
    f = (bits - (exponent << 23)).view(np.float32) - np.float32(1)
    square = _horner(LOGARITHM, f) * f + exponent.astype(np.float32) * EXPONENT
    radius: NDArray[np.float32] = np.sqrt(square)
    return radius


def _horner(coefficients: tuple[np.float32, ...], x: NDArray[np.float32]) -> NDArray[np.float32]:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def incidences(
    layout: HashLayout, raw: NDArray[np.uint32], starts: Starts, order: int, lag: int | None
) -> NDArray[np.int64]:
    """The token that each position [T] adds to the rows of its `order`-gram, -1 for none.

    With `lag` it is the one so many places back, if the n-gram sees it; without, the one that
    follows in the same sequence.
    """
    tokens = raw.astype(np.int64)
    if lag is None:
        follows = np.append(~starts[1:], False)
        return np.where(follows, np.append(tokens[1:], -1), -1)
    compressed = tokens if layout.lookup is None else layout.lookup[tokens]
    seen = visible(layout, compressed.astype(np.int32), starts=starts)
    back = np.concatenate([np.full(lag, -1), tokens])[: len(tokens)]
    return np.where((seen > lag) & (lag < order), back, -1)


def united(pairs: NDArray[np.uint64]) -> dict[tuple[int, int], int]:
    """The counts of pairs [2 * n] by (mix, token)."""
    counts: Counter[tuple[int, int]] = Counter()
    for mix, value in pairs.reshape(-1, 2).tolist():
        counts[mix, value >> 32] += value & 0xFFFFFFFF
    return dict(counts)


def sort_bucket(
    entries: NDArray[np.uint64], begins: NDArray[np.int32], values: NDArray[np.uint32]
) -> None:
    """The values of a bucket's entries [n] by row; `begins` [rows + 2], the last two equal n."""
    rows = (entries >> np.uint64(32)).astype(np.int64)
    values[: len(rows)] = entries[np.argsort(rows, kind="stable")] & np.uint64(0xFFFFFFFF)
    begins[0] = 0
    begins[1:] = np.cumsum(np.bincount(rows, minlength=len(begins) - 1))


def add_rows(
    values: NDArray[np.uint32],
    begins: NDArray[np.int32],
    rows: NDArray[np.int64],
    vectors: NDArray[np.int16],
    sign: int,
    records: NDArray[np.int64],
) -> None:
    """Add `sign` x the values of each of `rows` [n] to `records` [n, 1 + w]: counts, then sums.

    The values of row r are values[begins[r] : begins[r + 1]], of `vectors` [V, W].
    """
    for record, r in zip(records, rows, strict=True):
        own = values[begins[r] : begins[r + 1]].astype(np.int64)
        counts, tokens = own >> 20, own & 0xFFFFF
        record[0] += sign * counts.sum()
        record[1:] += sign * (counts @ vectors[tokens, : len(record) - 1].astype(np.int64))


def fill_rows(
    values: NDArray[np.uint32],
    begins: NDArray[np.int32],
    vectors: NDArray[np.int16],
    mean: NDArray[np.float64],
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Rows [R, w] from the same values: see `finish`."""
    records = np.zeros((len(out), 1 + out.shape[1]), dtype=np.int64)
    add_rows(values, begins, np.arange(len(out)), vectors, 1, records)
    finish(records, mean, scale, out)


def finish(
    records: NDArray[np.int64],
    mean: NDArray[np.float64],
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Rows [R, w] of records: (sums x (1 / count) - mean) x scale, zero where nothing fell."""
    hits, sums = records[:, 0], records[:, 1:]
    share = 1.0 / np.maximum(hits, 1).astype(np.float64)
    rows = (sums * share[:, None] - mean) * scale
    out[:] = np.where(hits[:, None] > 0, rows, 0.0).astype(np.float32)[: len(out)]


def project(
    values: NDArray[np.float32], projection: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """`out` [n, w] = values [n, d] x projection [d, w], added up from the first of d on."""
    out[:] = 0
    for k in range(len(projection)):
        out += values[:, k : k + 1] * projection[k]


def fill_column(
    layout: HashLayout,
    layer: LayerHash,
    column: int,
    raw: NDArray[np.uint32],
    starts: Starts,
    vectors: NDArray[np.int16],
    scale: float,
    *,
    follow: bool,
) -> NDArray[np.float32]:
    """float32[modulus, w]: the rows of a column, an occurrence at a time.

    `follow`: of next-token; otherwise of token-mean.
    """
    order = layout.orders[column // layout.heads]
    compressed = raw.astype(np.int32) if layout.lookup is None else layout.lookup[raw]
    rows = hash_columns(layout, layer, compressed, starts=starts)[column]
    records = np.zeros((layer.moduli[column], 1 + vectors.shape[1]), dtype=np.int64)
    hits, sums = records[:, 0], records[:, 1:]
    for lag in [None] if follow else range(order):
        tokens = incidences(layout, raw, starts, order, lag)
        some = tokens >= 0
        np.add.at(sums, rows[some], vectors[tokens[some]].astype(np.int64))
        np.add.at(hits, rows[some], 1)
    mean = np.zeros(vectors.shape[1])
    if follow and hits.any():
        mean = sums.sum(axis=0).astype(np.float64) / np.float64(hits.sum())
    out = np.empty(sums.shape, dtype=np.float32)
    finish(records, mean, scale, out)
    return out

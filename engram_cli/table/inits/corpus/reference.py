"""What the kernels of the corpus-filled inits compute, in plain NumPy: the definition of right."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.lookback import visible

Starts = NDArray[np.bool_]


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
    vectors: NDArray[np.int16],
    sums: NDArray[np.int64],
    hits: NDArray[np.int64],
) -> None:
    """Add count x vectors[token] [V, W] of row r's values to sums[r] [w], their counts to hits[r].

    Its values are values[begins[r] : begins[r + 1]].
    """
    for r in range(len(hits)):
        own = values[begins[r] : begins[r + 1]].astype(np.int64)
        counts, tokens = own >> 20, own & 0xFFFFF
        sums[r] += counts @ vectors[tokens, : sums.shape[1]].astype(np.int64)
        hits[r] += counts.sum()


def fill_rows(
    values: NDArray[np.uint32],
    begins: NDArray[np.int32],
    vectors: NDArray[np.int16],
    mean: NDArray[np.float64],
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Rows [R, w] from the same values: see `finish`."""
    sums, hits = np.zeros(out.shape, dtype=np.int64), np.zeros(len(out), dtype=np.int64)
    add_rows(values, begins, vectors, sums, hits)
    finish(sums, hits, mean, scale, out)


def finish(
    sums: NDArray[np.signedinteger],
    hits: NDArray[np.int64],
    mean: NDArray[np.float64],
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Rows [R, w] from sums: (sum x (1 / hits) - mean) x scale, zero where nothing fell."""
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
    from engram_cli.hashing.reference import hash_columns

    order = layout.orders[column // layout.heads]
    compressed = raw.astype(np.int32) if layout.lookup is None else layout.lookup[raw]
    rows = hash_columns(layout, layer, compressed, starts=starts)[column]
    sums = np.zeros((layer.moduli[column], vectors.shape[1]), dtype=np.int64)
    hits = np.zeros(len(sums), dtype=np.int64)
    for lag in [None] if follow else range(order):
        tokens = incidences(layout, raw, starts, order, lag)
        some = tokens >= 0
        np.add.at(sums, rows[some], vectors[tokens[some]].astype(np.int64))
        np.add.at(hits, rows[some], 1)
    mean = np.zeros(vectors.shape[1])
    if follow and hits.any():
        mean = sums.sum(axis=0).astype(np.float64) / np.float64(hits.sum())
    out = np.empty(sums.shape, dtype=np.float32)
    finish(sums, hits, mean, scale, out)
    return out

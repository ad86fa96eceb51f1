"""The kernels of `hashing.kernels` for a few tokens, by the NumPy definitions: equal to the bit.

Loading Numba and the kernels takes 0.7 s of CPU, as long as all else that `engram lookup` does.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing import lookback, reference

FEW = 2**16  # tokens that a process compresses and hashes with NumPy before it loads Numba

_KERNELS = "engram_cli.hashing.kernels"
_hashed = 0


def kernels_for(count: int) -> Any:
    """Return the module that does one step for `count` tokens: for the first few, this one."""
    global _hashed
    if _KERNELS not in sys.modules:
        _hashed += count
        if _hashed <= FEW:
            return sys.modules[__name__]
    from engram_cli.hashing import kernels

    return kernels


def compress(ids: NDArray[np.integer], lookup: NDArray[np.int32], out: NDArray[np.int32]) -> int:
    """Map token ids [T] through `lookup` [V] into `out` [T]; -1, or the first bad position."""
    inside = (ids >= 0) & (ids < len(lookup))
    out[:] = lookup[np.where(inside, ids, 0)]
    bad = np.flatnonzero(~inside | (out < 0))
    return int(bad[0]) if len(bad) else -1


def visible(
    x: NDArray[np.int32],
    dead: lookback.Mask,
    starts: lookback.Mask,
    eos: int,
    order: int,
    carry: int,
    out: NDArray[np.uint8],
) -> None:
    """Compute `lookback.visible` into `out`; empty masks: none, eos -1: no segments."""
    out[:] = lookback.limits(
        x,
        dead if len(dead) else None,
        starts if len(starts) else None,
        eos if eos >= 0 else None,
        order,
        carry,
    )


def hash_columns(
    x: NDArray[np.int32],
    seen: NDArray[np.uint8],
    filler: int,
    multipliers: NDArray[np.int64],
    orders: NDArray[np.int64],
    shared: bool,
    moduli: NDArray[np.int64],
    salts: NDArray[np.int64],
    fast: NDArray[np.bool_],
    out: NDArray[np.uint32],
) -> None:
    """Rows of T positions into `out` [C, T]; arguments as the kernel's."""
    heads = len(moduli) // len(orders)
    for index, order in enumerate(orders):
        mixes = reference.mix_ngrams(x, seen, filler, multipliers[index, :order])
        for column in range(index * heads, (index + 1) * heads):
            out[column] = reference.rows_of(mixes, int(moduli[column]), int(salts[column]))


def sum_columns(
    x: NDArray[np.int32],
    seen: NDArray[np.uint8],
    filler: int,
    weights: NDArray[np.int64],
    orders: NDArray[np.int64],
    moduli: NDArray[np.int64],
    fast: NDArray[np.bool_],
    out: NDArray[np.uint32],
) -> None:
    """`hash_columns` for the fold "powers": `weights` [C, N] of each column by lag."""
    heads = len(moduli) // len(orders)
    for column in range(len(moduli)):
        own = weights[column, : orders[column // heads]]
        totals = reference.sum_ngrams(x, seen, filler, own)
        out[column] = reference.rows_of(totals, int(moduli[column]), 0)


def to_rows(
    columns: NDArray[np.uint32], offsets: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """Columns uint32 [C, T] plus an offset each, into rows int64 [T, C]."""
    np.add(columns.T, offsets, out=out, casting="safe")

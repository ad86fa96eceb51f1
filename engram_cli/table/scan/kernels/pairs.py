"""Pairs of vectors: groups of unit vectors in, the nearest other one of each out.

A group is small and there are many: a matrix product's own threads waited longer for one another
than they computed, 16 to 250 ms for the same work on a busy machine, and calls from Python for each
group took longer than the products.
"""

from __future__ import annotations

import numpy as np
from numba import float32

from engram_cli.hashing.jit import kernel
from engram_cli.table.jit import add_in_any_order


@kernel("void(float32[:, ::1], intp[::1], float32[::1], intp[::1])")
def nearest(units, begins, best, mate):  # type: ignore[no-untyped-def]
    """Of unit vectors [n, dim] the greatest cosine to another one of its group [n], and to which.

    Group g is `begins[g]` to `begins[g + 1]`. Of equal ones the first; alone, -inf and itself.
    """
    for group in range(begins.size - 1):
        for row in range(begins[group], begins[group + 1]):
            best[row], mate[row] = -np.inf, row
            for other in range(begins[group], row):
                cosine = float32(0)
                for i in range(units.shape[1]):
                    cosine = add_in_any_order(cosine, units[row, i] * units[other, i])
                if cosine > best[row]:
                    best[row], mate[row] = cosine, other
                if cosine > best[other]:
                    best[other], mate[other] = cosine, row

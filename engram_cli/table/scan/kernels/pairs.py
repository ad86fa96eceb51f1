"""Pairs of vectors: unit vectors in, the nearest other one of each out.

A group is small and there are many: a matrix product's own threads waited longer for one another
than they computed, 16 to 250 ms for the same work on a busy machine.
"""

from __future__ import annotations

import numpy as np
from numba import float32

from engram_cli.hashing.jit import kernel
from engram_cli.table.jit import add_in_any_order


@kernel("void(float32[:, ::1], float32[::1], intp[::1])")
def nearest(units, best, mate):  # type: ignore[no-untyped-def]
    """Of unit vectors [n, dim] the greatest cosine to another one [n], and to which, the first."""
    best[:] = -np.inf
    mate[:] = 0
    for row in range(units.shape[0]):
        for other in range(row):
            cosine = float32(0)
            for i in range(units.shape[1]):
                cosine = add_in_any_order(cosine, units[row, i] * units[other, i])
            if cosine > best[row]:
                best[row], mate[row] = cosine, other
            if cosine > best[other]:
                best[other], mate[other] = cosine, row

"""What one core can do: copying, filling a buffer, compressing token ids, adding rows at random.

The rates of plain loops, next to which docs/reference/how-fast.md puts those of engram.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from runner import Case

from engram_cli.hashing import kernels

TOKENS, VOCABULARY = 2**24, 129_280
BUFFER = 2**16 * 16  # rows of 65,536 tokens in 16 columns: what a chunk of hashes fills
DIM, ADDED, VECTORS = 64, 2**21, 129_280


def cases() -> Iterator[Case]:
    """Compressing, next to a copy of as many bytes; and rates of loops that nothing competes in."""
    generator = np.random.default_rng(0)
    lookup = generator.integers(0, 100_000, VOCABULARY).astype(np.int32)
    ids = common(generator, TOKENS)
    out, other = np.empty_like(ids), np.empty_like(ids)

    def compressed() -> NDArray[np.int32]:
        assert kernels.compress(ids, lookup, out) == -1
        return out

    facts = {
        "copied_bytes_per_second": rate(lambda: np.copyto(other, ids), 2 * ids.nbytes),
        "filled_bytes_per_second": _filled(),
        "row_adds_per_second": _added(generator),
    }
    yield Case(
        name="token ids to compressed ids, one core",
        amount=TOKENS,
        unit="tokens",
        notes=f"{TOKENS:,} ids of a vocabulary of {VOCABULARY:,}, the more common the lower, as in "
        f"text. A core copies {facts['copied_bytes_per_second'] / 1e9:.1f} GB/s here (read and "
        f"written), fills a buffer of {4 * BUFFER / 1e6:.0f} MB again and again with "
        f"{facts['filled_bytes_per_second'] / 1e9:.1f} GB/s, and adds "
        f"{facts['row_adds_per_second'] / 1e6:.0f} M vectors of {DIM} float32 a second, picked by "
        "such ids.",
        contestants={"np.take": lambda: np.take(lookup, ids, out=other), "engram": compressed},
        same=np.array_equal,
        facts=facts,
    )


def common(generator: np.random.Generator, count: int) -> NDArray[np.int32]:
    """Draw ids by a Zipf distribution, int32 [count]."""
    ranks = VOCABULARY ** generator.random(count)  # the chance of a rank is about 1 / rank
    return np.minimum(ranks.astype(np.int32), VOCABULARY - 1)


def rate(call: Callable[[], Any], amount: float) -> float:
    """Return the amount that a call does in a second, the median of nine."""
    seconds = []
    for _ in range(9):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return round(amount / statistics.median(seconds[1:]))


def _filled() -> float:
    buffer = np.empty(BUFFER, dtype=np.uint32)
    return rate(lambda: buffer.fill(7), buffer.nbytes)


def _added(generator: np.random.Generator) -> float:
    @njit("void(float32[:, ::1], int32[::1], float32[::1])", nogil=True, fastmath=True)
    def add(vectors, picked, total):  # type: ignore[no-untyped-def]
        for i in range(0, picked.size, 4):
            a, b, c, d = picked[i], picked[i + 1], picked[i + 2], picked[i + 3]
            for k in range(DIM):
                total[k] += vectors[a, k] + vectors[b, k] + vectors[c, k] + vectors[d, k]

    vectors = generator.random((VECTORS, DIM), dtype=np.float32)
    picked, total = common(generator, ADDED), np.zeros(DIM, dtype=np.float32)
    return rate(lambda: add(vectors, picked, total), ADDED)

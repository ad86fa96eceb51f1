"""Rows that are alike: hashes of all rows in, twins out, and near twins beside them.

Both are found in samples that the rows themselves choose, so that those alike are chosen together
and memory is bounded: equal rows by the hash of their bytes, similar rows (`scan.alike`) by the
signs of some of their values. Neither depends on the order of reading or on threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.scan.alike import Alike, NearTwins, Vectors
from engram_cli.table.scan.kernels.rows import HASH, ROW

SAMPLE = 2**13  # rows expected in the sample
EVERYTHING = 2**64
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Rows with the same bytes: `rows` of them, `first` and `second` the two lowest."""

    rows: int
    first: int
    second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How many rows of a layer are alike; rows that are zero or not finite are left out.

    `distinct`: different row contents, an estimate with its standard error unless that is 0.
    `twin_share`: the share of the rows whose content another row has. `compared`: different
    contents that were compared with others. `near_share`: the share of them that has a near twin,
    corrected for those that the signs part; None where too many have the same signs to tell.
    """

    rows: int
    distinct: float
    distinct_error: float
    twin_share: float
    twins: tuple[Twins, ...]
    compared: int
    near_share: float | None
    near_twins: tuple[NearTwins, ...]


class Contents:
    """The row contents whose hash lies below `threshold`, each with its count and two rows."""

    def __init__(self, rows: int) -> None:
        """A sample of about `SAMPLE` of at most `rows` contents."""
        self.threshold = sample_threshold(rows)
        self._hashes = np.empty(0, dtype=np.uint64)
        self._counts = np.empty(0, dtype=np.int64)
        self._rows = np.empty((0, 2), dtype=np.int64)
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def add(self, chosen: NDArray[np.uint64]) -> None:
        """Take chosen rows uint64[4, n] with their hashes; each row once."""
        hashes, rows = chosen[HASH], chosen[ROW].astype(np.int64)
        below = hashes < np.uint64(min(self.threshold, EVERYTHING - 1))
        self._waiting.append((hashes[below], rows[below]))
        if sum(len(waiting) for waiting, _ in self._waiting) >= SAMPLE:
            self._merge()

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, *(waiting for waiting, _ in self._waiting)])
        fresh = np.concatenate([self._rows[:0, 0], *(rows for _, rows in self._waiting)])
        self._waiting = []
        counts = np.concatenate([self._counts, np.ones(len(fresh), dtype=np.int64)])
        pairs = np.stack([fresh, np.full(len(fresh), -1)], axis=1)
        rows = np.concatenate([self._rows, pairs])
        order = np.lexsort([rows[:, 0], hashes])
        hashes, counts, rows = hashes[order], counts[order], rows[order]
        begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        begins = begins[: len(hashes)]
        second = rows[begins, 1]
        several = np.diff(np.append(begins, len(hashes))) > 1
        following = rows[begins[several] + 1, 0]
        known = second[several]
        second[several] = np.where((known >= 0) & (known < following), known, following)
        self._rows = np.stack([rows[begins, 0], second], axis=1)
        self._hashes = hashes[begins]
        self._counts = np.add.reduceat(counts, begins) if len(begins) else counts

    def figures(self, rows: int) -> tuple[float, float, float, tuple[Twins, ...]]:
        """Distinct contents, their error, the share of the `rows` with a twin, the largest groups.

        An estimator of a sample by hash, as of the n-grams of a corpus; never more than the rows
        without those that are known to repeat others.
        """
        self._merge()
        share = min(self.threshold / EVERYTHING, 1.0)
        size = len(self._hashes)
        error = math.sqrt(size * (1.0 - share)) / share
        seen = int(self._counts.sum())
        doubled = self._counts > 1
        twin_share = int(self._counts[doubled].sum()) / seen if seen else 0.0
        best = np.lexsort([self._rows[:, 0], -self._counts])
        shown = [at for at in best[:_SHOWN].tolist() if self._counts[at] > 1]
        groups = tuple(
            Twins(
                rows=int(self._counts[at]),
                first=int(self._rows[at, 0]),
                second=int(self._rows[at, 1]),
            )
            for at in shown
        )
        return min(size / share, float(rows - (seen - size))), error, twin_share, groups


def sample_threshold(rows: int) -> int:
    """The hash below which about `SAMPLE` of `rows` random ones lie."""
    return EVERYTHING if rows <= SAMPLE else EVERYTHING * SAMPLE // rows


def likeness(
    rows: int, contents: Contents, alike: Alike, vectors: Vectors, bits: tuple[int, int]
) -> Likeness:
    """The figures of a layer of `rows` rows that are neither zero nor not finite."""
    distinct, error, twin_share, twins = contents.figures(rows)
    compared = alike.compare(vectors, bits)
    return Likeness(
        rows=rows,
        distinct=distinct,
        distinct_error=error,
        twin_share=twin_share,
        twins=twins,
        compared=compared.contents,
        near_share=compared.share,
        near_twins=compared.pairs,
    )

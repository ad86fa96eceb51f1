"""Rows with equal contents: hashes of rows in, how many are duplicates out.

They are found in a sample that the rows choose by the hash of their bytes, so that equal rows are
chosen together and memory is bounded. It does not depend on the order of reading or on threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
class Duplicates:
    """How many rows of a layer have equal contents, without those that are zero or not finite.

    `distinct`: distinct row contents, an estimate with its standard error unless that is 0.
    `twin_share`: the share of the rows whose content another row has.
    """

    rows: int
    distinct: float
    distinct_error: float
    twin_share: float
    twins: tuple[Twins, ...]


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
        """Take chosen rows uint64[2, n] with their hashes; each row once."""
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

    def figures(self, rows: int) -> Duplicates:
        """The figures of a layer of `rows` rows that are neither zero nor not finite.

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
        return Duplicates(
            rows=rows,
            distinct=min(size / share, float(rows - (seen - size))),
            distinct_error=error,
            twin_share=twin_share,
            twins=groups,
        )


def sample_threshold(rows: int) -> int:
    """The hash below which about `SAMPLE` of `rows` random ones lie."""
    return EVERYTHING if rows <= SAMPLE else EVERYTHING * SAMPLE // rows

"""Which rows of a layer have equal contents, by hashes of their bytes.

Up to `EXACT` rows are all compared, in 32 bytes a row, 107 where all rows repeat others. Of more
rows, a sample of contents is compared: those whose hash is small, each with all of its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.scan.kernels import rows as kernels

EXACT = 2**21
SAMPLE = 2**13  # contents expected in a sample
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

    `distinct`: distinct row contents. `twin_share`: the share of the rows whose content another row
    has. `twins`: the largest groups of them. All are of the share `contents_read` of the contents:
    where it is below 1, the first two are estimates with standard errors, and there may be larger
    groups. Of a sample of the rows, `rows`, `distinct` and `twins` are those of the sample, and
    `twin_share` is a `bound`: at most so many rows of the layer have a twin, with 95 % confidence.
    """

    rows: int
    distinct: float
    distinct_error: float
    twin_share: float
    twins: tuple[Twins, ...]
    bound: bool = False
    twin_share_error: float = 0.0
    contents_read: float = 1.0


class Contents:
    """The row contents whose hash lies below `threshold`, each with its count and two rows.

    They are a sample of contents: each comes with all of its rows, or with none. Where the sample
    is all of them, rows are kept until figures are asked for, after the last one.
    """

    def __init__(self, rows: int) -> None:
        """Make room for all of at most `rows` contents, or for about `SAMPLE` of more."""
        self.threshold = sample_threshold(rows)
        self._alone = 0  # contents of one row that are not kept
        self._hashes = np.empty(0, dtype=np.uint64)
        self._counts = np.empty(0, dtype=np.int64)
        self._rows = np.empty((0, 2), dtype=np.int64)
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def add(self, chosen: NDArray[np.uint64]) -> None:
        """Take chosen rows uint64[2, n] with their hashes; each row once."""
        hashes, rows = chosen[kernels.HASH], chosen[kernels.ROW].astype(np.int64)
        below = hashes < np.uint64(min(self.threshold, EVERYTHING - 1))
        self._waiting.append((hashes[below], rows[below]))
        waiting = sum(len(each) for each, _ in self._waiting)
        if self.threshold < EVERYTHING and waiting >= SAMPLE:
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        hashes = np.concatenate([waiting for waiting, _ in self._waiting])
        fresh = np.concatenate([rows for _, rows in self._waiting])
        self._waiting = []
        if self.threshold == EVERYTHING:
            several = _repeated(hashes)
            self._alone += len(hashes) - int(np.count_nonzero(several))
            hashes, fresh = hashes[several], fresh[several]
        hashes = np.concatenate([self._hashes, hashes])
        counts = np.concatenate([self._counts, np.ones(len(fresh), dtype=np.int64)])
        pairs = np.stack([fresh, np.full(len(fresh), -1)], axis=1)
        rows = np.concatenate([self._rows, pairs])
        order = np.argsort(hashes)  # 6 times as fast as a stable one
        ordered = hashes[order]
        same = ordered[1:] == ordered[:-1]
        if same.any():  # rows are added in their order
            equal = np.concatenate([same, [False]])
            equal[1:] |= same
            own = order[equal]
            order[equal] = own[np.lexsort([own, hashes[own]])]
        hashes, counts, rows = ordered, counts[order], rows[order]
        begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        begins = begins[: len(hashes)]
        second = rows[begins, 1]
        again = np.diff(np.append(begins, len(hashes))) > 1
        following = rows[begins[again] + 1, 0]
        known = second[again]
        second[again] = np.where((known >= 0) & (known < following), known, following)
        self._rows = np.stack([rows[begins, 0], second], axis=1)
        self._hashes = hashes[begins]
        self._counts = np.add.reduceat(counts, begins) if len(begins) else counts

    @property
    def repeated(self) -> NDArray[np.int64]:
        """Return how many rows have each content that several have."""
        self._merge()
        return self._counts[self._counts > 1]

    def figures(self, rows: int) -> Duplicates:
        """Return the figures of a layer of `rows` rows that are neither zero nor not finite.

        Of a sample of contents, the share with twins comes from the rows without: as groups of one
        they are as good as sampled one by one, so its error is the same for groups of any size.
        There are never more distinct contents, or fewer twins, than the repeated rows leave.
        """
        self._merge()
        share = min(self.threshold / EVERYTHING, 1.0)
        size, seen = len(self._hashes) + self._alone, int(self._counts.sum()) + self._alone
        single = size - int(np.count_nonzero(self._counts > 1))
        alone = single / share / max(rows, 1)

        def error(found: int) -> float:
            # None in the sample is not none: the error is then that of one.
            return math.sqrt(max(found, 1) * (1.0 - share)) / share if rows else 0.0

        return Duplicates(
            rows=rows,
            distinct=min(max(size / share, float(rows > 0)), float(rows - (seen - size))),
            distinct_error=error(size),
            twin_share=min(max(1.0 - alone, (seen - single) / max(rows, 1)), 1.0) if rows else 0.0,
            twin_share_error=error(single) / max(rows, 1),
            twins=self._largest(),
            contents_read=share,
        )

    def _largest(self) -> tuple[Twins, ...]:
        several = np.flatnonzero(self._counts > 1)
        best = several[np.lexsort([self._rows[several, 0], -self._counts[several]])]
        return tuple(
            Twins(
                rows=int(self._counts[at]),
                first=int(self._rows[at, 0]),
                second=int(self._rows[at, 1]),
            )
            for at in best[:_SHOWN].tolist()
        )


def _repeated(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which hashes are there more than once: all are sorted alone, few with their rows."""
    ordered = np.sort(hashes)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return np.zeros(len(hashes), dtype=np.bool_)
    found: NDArray[np.bool_] = again[np.searchsorted(again, hashes) % len(again)] == hashes
    return found


def sample_threshold(rows: int) -> int:
    """Return the hash below which all of `rows` random ones lie, or about `SAMPLE` of them."""
    return EVERYTHING if rows <= max(SAMPLE, EXACT) else EVERYTHING * SAMPLE // rows

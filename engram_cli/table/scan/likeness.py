"""Rows that are alike: hashes and signatures of all rows in, twins and near twins out.

Both are found in samples that the rows themselves choose, so that those alike are chosen together
and memory is bounded: equal rows by the hash of their bytes, similar rows by the signs of some of
their values. Neither depends on the order of reading or on threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.scan import kernels

SAMPLE = 2**13  # rows expected in each sample
MOST_ALIKE = 4 * SAMPLE  # rows kept whose signatures were chosen
NEAR = 0.99  # the cosine from which on two rows are near twins
EVERYTHING = 2**64
_BLOCK = 1024
_SHOWN = 5

Vectors = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Rows with the same bytes: `rows` of them, `first` and `second` the two lowest."""

    rows: int
    first: int
    second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NearTwins:
    """Two rows of a layer, not of the same bytes, and the cosine between them."""

    first: int
    second: int
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How many rows of a layer are alike; rows that are zero or not finite are left out.

    `distinct`: different row contents, an estimate with its standard error unless that is 0.
    `twin_share`: the share of the rows whose content another row has. `near_share`: the share of
    the rows compared that have a near twin, corrected for those that the signatures part; None
    where too many rows have the same signs to compare any. `compared`: rows compared.
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

    def add(self, hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Take rows [n] with their hashes [n]; each row once."""
        chosen = hashes < np.uint64(min(self.threshold, EVERYTHING - 1))
        self._waiting.append((hashes[chosen], rows[chosen]))
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

        An estimator of a sample by hash, as of the n-grams of a corpus.
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
        return size / share, error, twin_share, groups


class Alike:
    """The rows whose signatures were chosen: places uint64[n] of signatures, rows int64[n]."""

    def __init__(self, rows: int) -> None:
        self.threshold = sample_threshold(rows)
        self._places = np.empty(0, dtype=np.uint64)
        self._rows = np.empty(0, dtype=np.int64)

    def add(self, signs: NDArray[np.uint32], rows: NDArray[np.int64]) -> None:
        """Take rows [n] with their signatures [n]; where they are too many, drop signatures."""
        places = kernels.places_of(np.ascontiguousarray(signs))
        chosen = places < np.uint64(min(self.threshold, EVERYTHING - 1))
        self._places = np.concatenate([self._places, places[chosen]])
        self._rows = np.concatenate([self._rows, rows[chosen]])
        if len(self._rows) > MOST_ALIKE:
            ascending = np.sort(self._places)
            self.threshold = int(ascending[MOST_ALIKE])
            kept = self._places < np.uint64(self.threshold)
            self._places, self._rows = self._places[kept], self._rows[kept]

    def compare(self, vectors: Vectors, bits: int) -> tuple[int, float | None, list[NearTwins]]:
        """How many rows were compared, the share with a near twin, and the nearest pairs.

        `vectors` gives rows float32[n, dim]. Only rows of the same signature are compared, and a
        pair at angle a has the same `bits` signs by chance (1 - a / pi)**bits, by which each find
        is divided. Source: Charikar, "Similarity Estimation Techniques from Rounding" (2002).
        """
        order = np.lexsort([self._rows, self._places])
        places, rows = self._places[order], self._rows[order]
        if len(rows) == 0:
            return 0, None, []
        begins = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))
        weight, pairs = 0.0, list[NearTwins]()
        gathered = vectors(rows)
        for begin, end in zip(begins, np.append(begins[1:], len(rows)), strict=True):
            own, values = rows[begin:end], gathered[begin:end]
            best, mate = _nearest(values)
            near = np.flatnonzero(best >= NEAR)
            angle = np.arccos(np.clip(best[near], -1.0, 1.0))
            weight += float(np.sum((1.0 - angle / np.pi) ** -float(bits)))
            pairs += [
                NearTwins(first=int(own[at]), second=int(own[mate[at]]), cosine=float(best[at]))
                for at in near.tolist()
                if at < mate[at] and not np.array_equal(values[at], values[mate[at]])
            ]
        pairs.sort(key=lambda pair: (-pair.cosine, pair.first))
        return len(rows), min(weight / len(rows), 1.0), pairs[:_SHOWN]


def sample_threshold(rows: int) -> int:
    """The hash below which about `SAMPLE` of `rows` random ones lie."""
    return EVERYTHING if rows <= SAMPLE else EVERYTHING * SAMPLE // rows


def likeness(rows: int, contents: Contents, alike: Alike, vectors: Vectors, bits: int) -> Likeness:
    """The figures of a layer of `rows` rows that are neither zero nor not finite."""
    distinct, error, twin_share, twins = contents.figures(rows)
    compared, near_share, near_twins = alike.compare(vectors, bits)
    return Likeness(
        rows=rows,
        distinct=distinct,
        distinct_error=error,
        twin_share=twin_share,
        twins=twins,
        compared=compared,
        near_share=near_share,
        near_twins=tuple(near_twins),
    )


def _nearest(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """For each row [n, dim] the greatest cosine to another one, and to which."""
    largest = np.max(np.abs(vectors), axis=1, keepdims=True)
    units = vectors / largest  # so that no square leaves float32
    units /= np.sqrt(np.einsum("nd,nd->n", units, units))[:, None]
    best = np.empty(len(units), dtype=np.float32)
    mate = np.empty(len(units), dtype=np.intp)
    for begin in range(0, len(units), _BLOCK):
        part = units[begin : begin + _BLOCK] @ units.T
        at = np.arange(len(part))
        part[at, begin + at] = -np.inf
        mate[begin : begin + len(part)] = np.argmax(part, axis=1)
        best[begin : begin + len(part)] = np.max(part, axis=1)
    return best, mate

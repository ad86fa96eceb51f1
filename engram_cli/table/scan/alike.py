"""Rows that point nearly the same way: rows chosen by their signs in, near twins out.

Rows have a place by the signs of their first values, a finer one by those of twice as many, and a
hash. The contents that come first in this order are kept, so many that there is enough to compare
and that memory is bounded: similar rows have the same place, and so are kept together, and where
one place holds too many, those with the same finer place are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.scan.kernels import rows as kernels
from engram_cli.table.scan.kernels.pairs import nearest

SIGNS = 16  # values whose signs place a row
MOST_ALIKE = 2**13  # contents kept
NEAR = 0.99  # the cosine from which on two rows are near twins
LAST = 2**64 - 1
_LARGEST_GROUP = 2**12  # contents compared with one another
_GATHERED = 2**12  # rows read together
_ROOM = 1.5  # times what is to be kept is chosen at first
_LEAST_MET = 8  # of the rows looked at, where a limit is set by them
_SHOWN = 5

Vectors = Callable[[NDArray[np.int64]], NDArray[np.float32]]
Limits = tuple[int, int, int]  # place, finer place, hash
ALL: Limits = (LAST, LAST, LAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearTwins:
    """Two rows of a layer, not of the same bytes, and the cosine between them."""

    first: int
    second: int
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How many contents were compared, the share that has a near twin, and the nearest pairs.

    `share` is None where none could be compared with all that have the same signs.
    """

    contents: int
    share: float | None
    pairs: tuple[NearTwins, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """Kept contents `begin` to `end` that have `bits` signs in common; `whole`: all of these."""

    begin: int
    end: int
    bits: int
    whole: bool


class Alike:
    """The contents kept: uint64[4, n] (row, hash, place, finer place), in order, one row each."""

    def __init__(self, limits: Limits = ALL) -> None:
        """`limits`: what contents come before at first."""
        self.limits = limits
        self._kept = np.empty((kernels.COLUMNS, 0), dtype=np.uint64)
        self._waiting: list[NDArray[np.uint64]] = []

    def add(self, chosen: NDArray[np.uint64]) -> None:
        """Take chosen rows uint64[4, n], each once; where they are too many, lower the limits."""
        self._waiting.append(chosen)
        if sum(each.shape[1] for each in self._waiting) >= MOST_ALIKE // 2:
            self._merge()

    def _merge(self) -> None:
        kept = in_order(np.concatenate([self._kept, *self._waiting], axis=1))
        self._waiting = []
        same = np.all(kept[kernels.HASH :, 1:] == kept[kernels.HASH :, :-1], axis=0)
        kept = kept[:, np.concatenate([[True], ~same])[: kept.shape[1]]]
        kept = kept[:, : _rank(kept, self.limits)]
        if kept.shape[1] > MOST_ALIKE:
            self.limits = _place(kept, MOST_ALIKE)
            kept = kept[:, :MOST_ALIKE]
        self._kept = kept

    def compare(self, vectors: Vectors, bits: tuple[int, int]) -> Compared:
        """Find the near twins among the contents that have the same signs.

        `vectors` gives rows float32[n, dim]; `bits`: the signs behind a place and a finer one. A
        pair at angle a has the same k signs by chance (1 - a / pi)**k, by which each find is
        divided. Source: Charikar, "Similarity Estimation Techniques from Rounding" (2002).
        """
        self._merge()
        rows = self._kept[kernels.ROW].astype(np.int64)
        weight, in_whole, compared, pairs = 0.0, 0, 0, list[NearTwins]()
        for groups in _together(self._groups(bits)):
            sizes = [group.end - group.begin for group in groups]
            own = np.concatenate([rows[group.begin : group.end] for group in groups])
            best, mate = _nearest(vectors(own), sizes)
            near = np.flatnonzero(best >= NEAR)
            whole = np.repeat([group.whole for group in groups], sizes)
            same = np.repeat([float(group.bits) for group in groups], sizes)
            counted = near[whole[near]]
            angle = np.arccos(np.clip(best[counted], -1.0, 1.0))
            weight += float(np.sum((1.0 - angle / np.pi) ** -same[counted]))
            in_whole += int(np.count_nonzero(whole))
            compared += len(own)
            pairs += [
                _pair(own, best, mate, at)
                for at in near.tolist()
                if at < mate[at] or mate[mate[at]] != at  # of each pair once
            ]
        pairs.sort(key=lambda pair: (-pair.cosine, pair.first, pair.second))
        share = min(weight / in_whole, 1.0) if in_whole else None
        return Compared(contents=compared, share=share, pairs=tuple(pairs[:_SHOWN]))

    def _groups(self, bits: tuple[int, int]) -> Iterator[_Group]:
        """What to compare: a place, of large ones each finer place, of larger ones the beginning.

        The limits may have cut off a part of the last place.
        """
        places, finer = self._kept[kernels.AT], self._kept[kernels.FINE]
        for begin, end in _runs(places):
            cut = int(places[begin]) == self.limits[0]
            if not cut and end - begin <= _LARGEST_GROUP:
                yield _Group(begin=begin, end=end, bits=bits[0], whole=True)
                continue
            for first, last in _runs(finer[begin:end]):
                own = begin + first
                whole = not (cut and int(finer[own]) == self.limits[1])
                size = min(last - first, _LARGEST_GROUP)
                whole = whole and size == last - first
                yield _Group(begin=own, end=own + size, bits=bits[1], whole=whole)


def limits_of(met: NDArray[np.uint64], share: float) -> Limits:
    """Limits that about `MOST_ALIKE` contents come before, and rather more.

    `met` uint64[4, n]: the rows with values among a `share` of all rows.
    """
    wanted = max(_LEAST_MET, int(_ROOM * MOST_ALIKE * share))
    return _place(in_order(met), wanted) if wanted < met.shape[1] else ALL


def in_order(chosen: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Chosen rows uint64[4, n] by place, finer place, hash and row."""
    order = np.lexsort([chosen[at] for at in (kernels.ROW, kernels.HASH, kernels.FINE, kernels.AT)])
    return chosen[:, order]


def _place(ordered: NDArray[np.uint64], at: int) -> Limits:
    place, finer, hashed = (
        int(ordered[row, at]) for row in (kernels.AT, kernels.FINE, kernels.HASH)
    )
    return place, finer, hashed


def _rank(ordered: NDArray[np.uint64], limits: Limits) -> int:
    """How many of the ordered contents come before the limits."""
    begin, end = 0, ordered.shape[1]
    for row, limit in zip((kernels.AT, kernels.FINE, kernels.HASH), limits, strict=True):
        own = ordered[row, begin:end]
        low = int(np.searchsorted(own, np.uint64(limit), side="left"))
        high = int(np.searchsorted(own, np.uint64(limit), side="right"))
        begin, end = begin + low, begin + high
    return begin


def _runs(values: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Where equal ordered values begin and end."""
    if len(values):
        begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        yield from zip(begins.tolist(), [*begins[1:].tolist(), len(values)], strict=True)


def _together(groups: Iterator[_Group]) -> Iterator[list[_Group]]:
    """Groups whose rows are read and compared in one go."""
    waiting, size = list[_Group](), 0
    for group in groups:
        if waiting and size + group.end - group.begin > _GATHERED:
            yield waiting
            waiting, size = [], 0
        waiting.append(group)
        size += group.end - group.begin
    if waiting:
        yield waiting


def _pair(
    rows: NDArray[np.int64], best: NDArray[np.float32], mate: NDArray[np.intp], at: int
) -> NearTwins:
    first, second = sorted((int(rows[at]), int(rows[mate[at]])))
    return NearTwins(first=first, second=second, cosine=min(float(best[at]), 1.0))


def _nearest(
    vectors: NDArray[np.float32], sizes: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """For each row [n, dim] the greatest cosine to another one of its group, and to which.

    `sizes`: of the groups, one after another.
    """
    largest = np.max(np.abs(vectors), axis=1, keepdims=True)
    units = vectors / largest  # so that no square leaves float32
    units /= np.sqrt(np.einsum("nd,nd->n", units, units))[:, None]
    best = np.empty(len(units), dtype=np.float32)
    mate = np.empty(len(units), dtype=np.intp)
    nearest(units, np.cumsum([0, *sizes], dtype=np.intp), best, mate)
    return best, mate

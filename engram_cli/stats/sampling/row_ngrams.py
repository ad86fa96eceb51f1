"""Finds the known n-grams that hash to given rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.stats.sampling.distinct import NgramSample, hash_ngrams
from engram_cli.stats.sampling.known import (
    HitsAt,
    at_most,
    certain_places,
    least_hits,
    ngram_rows,
    places_in,
)
from engram_cli.stats.sampling.occurrences import Drawn, drawn_ngrams
from engram_cli.stats.stats_io import Statistics

_STEP = 2**17  # n-grams hashed together
_MOST_INDEXED = 2**27  # n-grams x heads whose rows are kept
_Places: TypeAlias = tuple[NDArray[np.int64], NDArray[np.uint32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNgram:
    """An n-gram on a row: its index `at` among the known ones, and its count or an upper bound."""

    at: int
    count: int
    exact: bool


class RowNgrams:
    """Finds the known n-grams of one order on the rows of a layer."""

    def __init__(
        self,
        layout: HashLayout,
        entry: LayerHash,
        sample: NgramSample,
        drawn: Drawn | None,
        hits_at: HitsAt,
        positions: int,
    ) -> None:
        """`hits_at`: the hits of rows of the layer; `positions`: the tokens of the corpus."""
        self.sample = sample
        self.tokens = sample.tokens
        if drawn is not None and not sample.exact:
            others = drawn.tokens[places_in(sample, drawn.hashes) < 0]
            self.tokens = np.concatenate([sample.tokens, others])
        self._layout, self._entry = layout, entry
        self._index = layout.orders.index(sample.order)
        self._plan = plan_layer(layout, entry)
        self._hits_at, self._positions = hits_at, positions
        self._rows: list[tuple[NDArray[np.uint32], NDArray[np.int32]]] = []
        self._all_counts: NDArray[np.uint64] | None = None

    def index(self) -> None:
        """Keep the rows and counts of all known n-grams: `on` then hashes none of them again.

        Takes 8 bytes an n-gram and head. Does nothing where that is more than 1 GiB.
        """
        heads, size = self._layout.heads, len(self.tokens)
        if self._rows or heads * size > _MOST_INDEXED:
            return
        rows = np.empty((heads, size), dtype=np.uint32)
        for begin in range(0, size, _STEP):
            end = begin + _STEP
            rows[:, begin:end] = self._rows_of(begin)
        order = np.argsort(rows, axis=1, kind="stable").astype(np.int32)
        self._all_counts = self._count(np.arange(size))
        self._rows = [(own[at], at) for own, at in zip(rows, order, strict=True)]

    def on(self, rows: Iterable[NDArray[np.integer]]) -> list[dict[int, list[RowNgram]]]:
        """Return, for each head of `rows` [H][n], row -> its n-grams, the most frequent first."""
        wanted = [np.unique(own) for own in rows]
        found = self._indexed(wanted) if self._rows else self._scanned(wanted)
        counts = self._counts(np.concatenate([places for places, _ in found]))
        return [self._by_row(*own, counts) for own in found]

    def on_row(self, head: int, row: int) -> list[RowNgram]:
        """Return the n-grams on one row of a head, the most frequent first."""
        wanted = [np.empty(0, dtype=np.uint32)] * self._layout.heads
        wanted[head] = np.array([row], dtype=np.uint32)
        found = self._indexed(wanted) if self._rows else self._scanned(wanted)
        places, rows = found[head]
        return self._by_row(places, rows, self._counts(places)).get(row, [])

    def find(self, ngrams: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return int64[T] and bool[T] for n-grams [T, n]: the index of each in the sample, -1 for
        those not in it, and whether its count is certain; see `certain_places`."""
        return certain_places(self.sample, hash_ngrams(np.ascontiguousarray(ngrams)))

    def counts(self, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return uint64[S]: the counts of known n-grams by their ascending indices, exact for
        the first `len(sample.counts)` n-grams, upper bounds for the others."""
        return self._count(places) if self._all_counts is None else self._all_counts[places]

    def _rows_of(self, begin: int) -> NDArray[np.uint32]:
        """Return uint32[H, n]: the rows of the known n-grams from `begin` on."""
        tokens = self.tokens[begin : begin + _STEP]
        return ngram_rows(tokens, self._plan, self._index, self._layout.heads)

    def _scanned(self, wanted: Sequence[NDArray[np.integer]]) -> list[_Places]:
        """Return, for each head, the known n-grams on the rows `wanted`, and the row of each."""
        places: list[list[NDArray[np.int64]]] = [[] for _ in wanted]
        fallen: list[list[NDArray[np.uint32]]] = [[] for _ in wanted]
        for begin in range(0, len(self.tokens), _STEP):
            part = self._rows_of(begin)
            for head, own in enumerate(wanted):
                at = np.flatnonzero(np.isin(part[head], own))
                places[head].append(begin + at)
                fallen[head].append(part[head][at])
        return [
            (_joined(own, np.int64), _joined(on, np.uint32))
            for own, on in zip(places, fallen, strict=True)
        ]

    def _indexed(self, wanted: Sequence[NDArray[np.integer]]) -> list[_Places]:
        """Return what `_scanned` returns, from the index."""
        found: list[_Places] = []
        for own, (rows, at) in zip(wanted, self._rows, strict=True):
            begins = np.searchsorted(rows, own.astype(np.uint32), side="left")
            ends = np.searchsorted(rows, own.astype(np.uint32), side="right")
            spans = zip(begins.tolist(), ends.tolist(), strict=True)
            inside = [np.arange(begin, end) for begin, end in spans]
            taken = _joined(inside, np.int64)
            found.append((at[taken].astype(np.int64), rows[taken]))
        return found

    def _counts(self, places: NDArray[np.int64]) -> dict[int, int]:
        """Return index -> count; an upper bound for n-grams outside the sample."""
        own = np.unique(places)
        return dict(zip(own.tolist(), self.counts(own).tolist(), strict=True))

    def _count(self, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return what `counts` returns, from the hits."""
        known = len(self.sample.counts)
        exact, others = places[places < known], places[places >= known]
        found = least_hits(self._layout, [self._entry], self.tokens[others], self._hits_at)
        bounds = at_most(found, self._positions)
        return np.concatenate([self.sample.counts[exact], bounds])

    def _by_row(
        self, places: NDArray[np.int64], rows: NDArray[np.uint32], counts: dict[int, int]
    ) -> dict[int, list[RowNgram]]:
        met: dict[int, list[RowNgram]] = {}
        for at, row in zip(places.tolist(), rows.tolist(), strict=True):
            ngram = RowNgram(at=at, count=counts[at], exact=at < len(self.sample.counts))
            met.setdefault(row, []).append(ngram)
        for found in met.values():
            found.sort(key=lambda ngram: (-ngram.count, ngram.at))
        return met


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *parts])


def load_row_ngrams(
    statistics: Statistics, entry: LayerHash, hits_at: HitsAt
) -> tuple[RowNgrams, ...]:
    """Return a finder for each order of the statistics. Raises ArtifactError."""
    layout, occurrences = statistics.layout, statistics.occurrences()
    drawn = None if occurrences is None else drawn_ngrams(occurrences, layout.orders)
    return tuple(
        RowNgrams(
            layout, entry, sample, None if drawn is None else drawn[index], hits_at,
            statistics.tokens,
        )
        for index, sample in enumerate(statistics.samples())
    )  # fmt: skip

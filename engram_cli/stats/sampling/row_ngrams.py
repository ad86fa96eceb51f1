"""Finds the known n-grams that hash to given rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.stats.sampling.distinct import NgramSample, hash_ngrams
from engram_cli.stats.sampling.known import HitsAt, at_most, least_hits, ngram_rows, places_in
from engram_cli.stats.sampling.occurrences import Drawn, drawn_ngrams
from engram_cli.stats.stats_io import Statistics

_STEP = 2**17  # n-grams hashed together


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

    def on(self, rows: NDArray[np.integer]) -> list[dict[int, list[RowNgram]]]:
        """Return, for each head of `rows` [H, n], row -> its n-grams, the most frequent first."""
        wanted = [np.unique(own) for own in rows]
        places: list[list[NDArray[np.int64]]] = [[] for _ in wanted]
        fallen: list[list[NDArray[np.uint32]]] = [[] for _ in wanted]
        for begin in range(0, len(self.tokens), _STEP):
            part = ngram_rows(
                self.tokens[begin : begin + _STEP], self._plan, self._index, self._layout.heads
            )
            for head, own in enumerate(wanted):
                at = np.flatnonzero(np.isin(part[head], own))
                places[head].append(begin + at)
                fallen[head].append(part[head][at])
        counts = self._counts(np.concatenate([each for own in places for each in own]))
        return [
            self._by_row(np.concatenate(own), np.concatenate(on), counts)
            for own, on in zip(places, fallen, strict=True)
        ]

    def find(self, ngrams: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return int64[T]: the indices of n-grams [T, n] in the sample, -1 for those not in it."""
        return places_in(self.sample, hash_ngrams(np.ascontiguousarray(ngrams)))

    def _counts(self, places: NDArray[np.int64]) -> dict[int, int]:
        """Return index -> count; an upper bound for n-grams outside the sample."""
        own = np.unique(places)
        exact, others = own[own < len(self.sample.counts)], own[own >= len(self.sample.counts)]
        found = least_hits(self._layout, [self._entry], self.tokens[others], self._hits_at)
        bounds = at_most(found, self._positions)
        counts = np.concatenate([self.sample.counts[exact], bounds])
        return dict(zip(own.tolist(), counts.tolist(), strict=True))

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

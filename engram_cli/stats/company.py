"""Which n-grams of a sample lie on given rows: statistics and rows in, n-grams by row out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.stats.collisions import sample_rows
from engram_cli.stats.distinct import NgramSample, hash_ngrams

_STEP = 2**17  # n-grams hashed together


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """An n-gram on a row: its place in the sample, and how often it occurred."""

    at: int
    count: int


class RowCompany:
    """The n-grams of an order's sample by the rows of a layer they fall on, for rows asked for."""

    def __init__(self, layout: HashLayout, entry: LayerHash, sample: NgramSample) -> None:
        self.sample = sample
        self._index = layout.orders.index(sample.order)
        self._heads = layout.heads
        self._plan = plan_layer(layout, entry)

    def on(self, rows: NDArray[np.integer]) -> list[dict[int, list[Company]]]:
        """By head, for rows [H, n] of it: row -> its n-grams, the most frequent first."""
        wanted = [np.unique(own) for own in rows]
        met: list[dict[int, list[Company]]] = [{} for _ in wanted]
        for begin in range(0, len(self.sample.counts), _STEP):
            part = self.sample.take(slice(begin, begin + _STEP))
            fallen = sample_rows(part, self._plan, self._index, self._heads)
            for head, own in enumerate(wanted):
                for at in np.flatnonzero(np.isin(fallen[head], own)).tolist():
                    company = Company(at=begin + at, count=int(part.counts[at]))
                    met[head].setdefault(int(fallen[head, at]), []).append(company)
        for of_head in met:
            for found in of_head.values():
                found.sort(key=lambda company: (-company.count, company.at))
        return met

    def find(self, ngrams: NDArray[np.int32]) -> NDArray[np.int64]:
        """int64[T]: the places of n-grams [T, n] in the sample, -1 for those it does not hold."""
        hashes = hash_ngrams(np.ascontiguousarray(ngrams))
        places = np.searchsorted(self.sample.hashes, hashes)
        inside = places < len(self.sample.hashes)
        places[~inside] = 0
        if len(self.sample.hashes) == 0:
            return np.full(len(hashes), -1, dtype=np.int64)
        found = inside & (self.sample.hashes[places] == hashes)
        return np.where(found, places, -1)

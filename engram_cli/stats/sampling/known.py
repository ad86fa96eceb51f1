"""Lists n-grams with their counts, or with upper bounds of them, so that frequent ones are found.

An n-gram of the sample by hash (`distinct`) has its exact count. One that only the sample of
positions (`occurrences`) holds has an upper bound: every occurrence adds one hit to a row of each
head, so it occurs at most as often as the least hit of its rows. This is the Count-Min sketch of
Cormode and Muthukrishnan (2005).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.stats.sampling.distinct import EVERYTHING, NgramSample
from engram_cli.stats.sampling.occurrences import Drawn
from engram_cli.stats.totals import FULL, Counts

# Hits of rows of a layer: (layer, int64 rows of any shape) -> as many hits.
HitsAt: TypeAlias = Callable[[int, NDArray[np.int64]], NDArray[np.uint32]]

_STEP = 2**15  # n-grams hashed together
_MOST_KEPT = 2**23  # n-grams of a sample x heads whose hits are kept


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownNgrams:
    """n-grams of one order. `exact` bool[K]: `counts` uint64[K] are theirs, or else at most theirs.

    `tokens` int32[K, order], oldest first; `positions`: how many were drawn to find the frequent
    ones, 0 where every n-gram is here or none were.
    """

    order: int
    positions: int
    tokens: NDArray[np.int32]
    counts: NDArray[np.uint64]
    exact: NDArray[np.bool_]


def ngram_rows(
    ngrams: NDArray[np.int32], plan: LayerPlan, order: int, heads: int
) -> NDArray[np.uint32]:
    """Return uint32[heads, S]: the head-local rows of n-grams int32[S, n]; `order`: its index.

    The n-grams form one stream, in which every n-th position is the end of one.
    """
    length = ngrams.shape[1]
    tokens = ngrams.reshape(-1)
    rows = np.empty((heads, len(tokens)), dtype=np.uint32)
    older = np.zeros(plan.multipliers.shape[1] - 1, dtype=np.int32)
    seen = np.full(len(tokens), length, dtype=np.uint8)
    plan.of_order(order).columns(np.concatenate([older, tokens]), seen, rows)
    return rows[:, length - 1 :: length]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeastHits:
    """For each of S n-grams: the `least` uint64[S] hits of its rows, and how many of the rows have
    no more, `ties` int64[S]."""

    least: NDArray[np.uint64]
    ties: NDArray[np.int64]


def least_hits(
    layout: HashLayout, layers: Sequence[LayerHash], tokens: NDArray[np.int32], hits_at: HitsAt
) -> LeastHits:
    """Return the least hits of n-grams int32[S, order] over all heads of some layers."""
    order, heads = tokens.shape[1], layout.heads
    index = layout.orders.index(order)
    plans = [plan_layer(layout, entry) for entry in layers]

    def met(ngrams: slice) -> Iterator[NDArray[np.uint32]]:
        for entry, plan in zip(layers, plans, strict=True):
            offsets = np.array(entry.offsets[index * heads : (index + 1) * heads], dtype=np.int64)
            rows = ngram_rows(tokens[ngrams], plan, index, heads).astype(np.int64)
            yield hits_at(entry.layer, rows + offsets[:, None])

    return _least(len(tokens), met)


def _least(size: int, met: Callable[[slice], Iterable[NDArray[np.uint32]]]) -> LeastHits:
    """Return the least hits of `size` n-grams; `met` gives uint32[heads, S] of some, by layer."""
    least = np.empty(size, dtype=np.uint32)
    ties = np.empty(size, dtype=np.int64)
    for begin in range(0, size, _STEP):
        step = slice(begin, begin + _STEP)
        hits = np.concatenate(list(met(step)))
        own = least[step] = hits.min(axis=0)
        ties[step] = np.count_nonzero(hits == own, axis=0)
    return LeastHits(least=least.astype(np.uint64), ties=ties)


def at_most(found: LeastHits, tokens: int) -> NDArray[np.uint64]:
    """Return uint64[S]: the most that n-grams can occur in a corpus of `tokens` tokens.

    A full counter bounds nothing.
    """
    return np.where(found.least < FULL, found.least, np.uint64(tokens))


def places_in(sample: NgramSample, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return int64[T]: the indices in a sample of n-grams with `hashes`, -1 for others."""
    if not len(sample.hashes):
        return np.full(len(hashes), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(sample.hashes, hashes), len(sample.hashes) - 1)
    return np.where(sample.hashes[places] == hashes, places, -1)


def certain_places(
    sample: NgramSample, hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the indices as `places_in`, and bool[T]: whether the count of each n-gram is certain.

    It is for those of the sample, and for those that the sample would hold if they occurred.
    """
    places = places_in(sample, hashes)
    certain = (places >= 0) | (sample.threshold == EVERYTHING)
    if sample.threshold < EVERYTHING:
        certain |= hashes < np.uint64(sample.threshold)
    return places, certain


def known_ngrams(counts: Counts, sample: NgramSample, drawn: Drawn | None) -> KnownNgrams:
    """Return the n-grams of both samples of an order, those of `sample` first."""
    own = KnownNgrams(
        order=sample.order,
        positions=0,
        tokens=sample.tokens,
        counts=sample.counts,
        exact=np.ones(len(sample.counts), dtype=np.bool_),
    )
    if sample.exact or drawn is None:
        return own
    others = drawn.tokens[places_in(sample, drawn.hashes) < 0]
    layout = counts.layout
    found = least_hits(layout, layout.layers, others, hits_of(counts))
    return KnownNgrams(
        order=sample.order,
        positions=drawn.positions,
        tokens=np.concatenate([own.tokens, others]),
        counts=np.concatenate([own.counts, at_most(found, counts.tokens)]),
        exact=np.concatenate([own.exact, np.zeros(len(others), dtype=np.bool_)]),
    )


def head_hits(counts: Counts, entry: LayerHash, tokens: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Return uint32[heads, S]: the hits of the rows of n-grams int32[S, order] in a layer."""
    layout, index = counts.layout, counts.layout.orders.index(tokens.shape[1])
    columns = slice(index * layout.heads, (index + 1) * layout.heads)
    offsets = np.array(entry.offsets[columns], dtype=np.int64)[:, None]
    rows = ngram_rows(tokens, plan_layer(layout, entry), index, layout.heads)
    hits: NDArray[np.uint32] = counts.hits[entry.layer][rows + offsets]
    return hits


def hits_of(counts: Counts) -> HitsAt:
    """Return a function that gives the counted hits."""
    return lambda layer, rows: counts.hits[layer][rows]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleHits:
    """Gives the hits of the rows of the n-grams of a sample.

    Several statistics ask for them. They are gathered once if they are few enough to be kept: of a
    usual sample that takes 30 ms a layer, from all over the counters.
    """

    counts: Counts
    sample: NgramSample
    _kept: dict[int, NDArray[np.uint32]] = field(default_factory=dict, repr=False)

    def of(self, entry: LayerHash, ngrams: slice) -> NDArray[np.uint32]:
        """Return uint32[heads, S]: the hits in a layer, of S n-grams of the sample."""
        tokens = self.sample.tokens
        if len(tokens) * self.counts.layout.heads > _MOST_KEPT:
            return head_hits(self.counts, entry, tokens[ngrams])
        kept = self._kept.get(entry.layer)
        if kept is None:
            steps = range(0, max(len(tokens), 1), _STEP)
            parts = [head_hits(self.counts, entry, tokens[at : at + _STEP]) for at in steps]
            kept = self._kept[entry.layer] = np.concatenate(parts, axis=1)
        return kept[:, ngrams]

    def least(self) -> LeastHits:
        """Return the least hits of all n-grams of the sample, over all heads of all layers."""
        layers = self.counts.layout.layers
        return _least(
            len(self.sample.tokens), lambda step: (self.of(entry, step) for entry in layers)
        )

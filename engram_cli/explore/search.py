"""Finds known n-grams by their words, with whole matches before parts of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.names import Names

if TYPE_CHECKING:  # with the kernels of counting
    from engram_cli.stats.sampling.row_ngrams import RowNgrams

_MOST_WORDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A known n-gram: `count` is its occurrences if `exact`, else an upper bound.

    `whole`: its tokens are those of the query, rather than words that contain the query's.
    """

    order: int
    tokens: tuple[int, ...]
    text: str
    count: int
    exact: bool
    whole: bool


def find_ngrams(
    known: Sequence[RowNgrams],
    query: str,
    wordings: Sequence[tuple[int, ...]],
    names: Names,
    size: int,
    limit: int,
) -> tuple[int, tuple[Match, ...]]:
    """Return how many n-grams match, and the first `limit`: whole ones, then by count.

    `wordings`: the compressed ids of the query as it may be encoded, none of an empty query.
    `size`: how many compressed ids there are. A whole match has such ids in a row, or lies inside
    them. Else each word of the query must be part of one token, the words one after another.
    """
    words = query.casefold().split()[:_MOST_WORDS]
    holds = [names.tokens_with(word, size) for word in words]
    found: list[tuple[bool, int, int, int]] = []  # whole, count, index of `known`, n-gram
    total = 0
    for at, each in enumerate(known):
        whole = _whole(each.tokens, wordings)
        places = np.flatnonzero(whole | _parts(each.tokens, holds))
        total += len(places)
        counts = each.counts(places)
        best = np.lexsort([places, -counts.astype(np.float64), ~whole[places]])[:limit]
        found += [
            (not whole[places[i]], -int(counts[i]), at, int(places[i])) for i in best.tolist()
        ]
    matches = tuple(
        Match(
            order=known[at].sample.order,
            tokens=tuple(known[at].tokens[place].tolist()),
            text=names.ngram(known[at].tokens[place]),
            count=-negative,
            exact=place < len(known[at].sample.counts),
            whole=not part and bool(words),
        )
        for part, negative, at, place in sorted(found)[:limit]
    )
    return total, matches


def _whole(tokens: NDArray[np.int32], wordings: Sequence[tuple[int, ...]]) -> NDArray[np.bool_]:
    """Return bool[K]: the n-grams [K, n] that have a wording in a row, or that lie inside one."""
    order = tokens.shape[1]
    found = np.zeros(len(tokens), dtype=np.bool_)
    for ids in wordings:
        width = min(order, len(ids))
        for begin in range(max(order, len(ids)) - width + 1):
            at, skipped = (begin, 0) if order > len(ids) else (0, begin)
            wanted = np.array(ids[skipped : skipped + width], dtype=np.int32)
            found |= (tokens[:, at : at + width] == wanted).all(axis=1)
    return found


def _parts(tokens: NDArray[np.int32], holds: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return bool[K]: n-grams of which tokens in a row are in the sets `holds` bool[V], in order.

    All of them for no sets.
    """
    found = np.full(len(tokens), not holds)
    for begin in range(tokens.shape[1] - len(holds) + 1):
        own = np.ones(len(tokens), dtype=np.bool_)
        for at, inside in enumerate(holds):
            own &= inside[tokens[:, begin + at]]
        found |= own
    return found

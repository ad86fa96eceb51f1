"""Chooses the rows to change: of the n-grams of a fact, those that other text reads least.

A row's traffic is its hits, the look-ups of the corpus that read it. An n-gram that the corpus does
not have still shares rows with others, on some heads more than on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The look-ups of one fact that may be changed, all arrays [n]: one for each position and row.

    `layers` int64: the number of the layer; `rows` int64: the row in its table; `orders` int64: the
    order of the n-gram; `hits` uint64: look-ups of the corpus; `tokens`: how many are predicted.
    """

    layers: NDArray[np.int64]
    rows: NDArray[np.int64]
    orders: NDArray[np.int64]
    hits: NDArray[np.uint64]
    tokens: int


def choose_rows(
    facts: Sequence[Candidates], per_token: int | None, most_hits: float | None = None
) -> list[dict[int, NDArray[np.int64]]]:
    """Return the rows to change of each fact, by layer, ascending and without repetition.

    `per_token` rows for each token that the fact predicts: those with the fewest hits, of as many
    those of the longest n-gram; None takes all of them. None of them has more than `most_hits`.
    """
    return [_choose(fact, per_token, most_hits) for fact in facts]


def _choose(
    fact: Candidates, per_token: int | None, most_hits: float | None
) -> dict[int, NDArray[np.int64]]:
    keys = np.stack((fact.layers, fact.rows), axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    order = np.lexsort((first, -fact.orders[first], fact.hits[first]))
    kept = first[order]
    if most_hits is not None:
        kept = kept[fact.hits[kept] <= most_hits]
    if per_token is not None:
        kept = kept[: per_token * fact.tokens]
    return {
        layer: np.sort(fact.rows[kept[fact.layers[kept] == layer]])
        for layer in np.unique(fact.layers[kept]).tolist()
    }


def joined(parts: Sequence[dict[int, NDArray[np.int64]]]) -> dict[int, NDArray[np.int64]]:
    """Return the rows of several facts by layer, ascending and without repetition."""
    layers = sorted({layer for part in parts for layer in part})
    return {
        layer: np.unique(np.concatenate([part[layer] for part in parts if layer in part]))
        for layer in layers
    }

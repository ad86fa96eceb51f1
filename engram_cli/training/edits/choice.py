"""Chooses the rows to change: those that move a fact's tokens most for each look-up of a corpus.

A row's traffic is its hits, the look-ups of the corpus that read it. To first order a change of row
r by d lowers the loss of a token by |g_r| |d|, with the gradient g_r of the loss, and costs other
text hits_r |d|^2. For a loss that is to fall by so much the least cost is that of the rows with the
largest |g_r|^2 / hits_r.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ChosenRows = dict[int, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The look-ups of one fact: `rows` int64[L, T, C] of the tables of `layers`, and `hits`
    uint64[L, T, C], how often a corpus looks them up."""

    layers: tuple[int, ...]
    rows: NDArray[np.int64]
    hits: NDArray[np.uint64]


def every_row(fact: Candidates, most_hits: float | None = None) -> ChosenRows:
    """Return all rows of a fact by layer, ascending, those with more than `most_hits` left out."""
    allowed = fact.hits <= (np.inf if most_hits is None else most_hits)
    rows = [np.unique(own[good]) for own, good in zip(fact.rows, allowed, strict=True)]
    return {layer: own for layer, own in zip(fact.layers, rows, strict=True) if len(own)}


def best_rows(
    fact: Candidates,
    squares: NDArray[np.float32],
    count: int,
    floor: float,
    most_hits: float | None = None,
) -> ChosenRows:
    """Return up to `count` rows of a fact by layer, ascending: the largest of squares / hits.

    `squares` float32[L, T, C]: of the gradients of a token's loss. `floor`: hits that are added to
    those of each row, so that rows which the corpus hardly reads compare by their gradients. Rows
    without a gradient or with more than `most_hits` are left out.
    """
    heights = int(fact.rows.max(initial=0)) + 1
    keys = fact.rows + heights * np.arange(len(fact.layers))[:, None, None]
    unique, first, which = np.unique(keys, return_index=True, return_inverse=True)
    gain = np.bincount(which.reshape(-1), weights=squares.reshape(-1), minlength=len(unique))
    hits = fact.hits.reshape(-1)[first].astype(np.float64)
    score = gain / (hits + floor)
    if most_hits is not None:
        score[hits > most_hits] = 0.0
    best = np.argsort(-score, kind="stable")[:count]
    taken = np.sort(unique[best[score[best] > 0.0]])
    return {
        layer: taken[taken // heights == place] % heights
        for place, layer in enumerate(fact.layers)
        if (taken // heights == place).any()
    }


def joined(parts: Iterable[ChosenRows]) -> ChosenRows:
    """Return the rows of several choices by layer, ascending and without repetition."""
    found: dict[int, list[NDArray[np.int64]]] = {}
    for part in parts:
        for layer, own in part.items():
            found.setdefault(layer, []).append(own)
    return {layer: np.unique(np.concatenate(found[layer])) for layer in sorted(found)}


def each_joined(count: int, parts: Iterable[tuple[int, ChosenRows]]) -> Sequence[ChosenRows]:
    """Return the rows of each of `count` facts, of choices by the fact's number."""
    found: list[list[ChosenRows]] = [[] for _ in range(count)]
    for number, part in parts:
        found[number].append(part)
    return [joined(own) for own in found]

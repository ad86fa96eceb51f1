"""The rows that frequent n-grams share, and the n-grams on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.stats.sampling.known import KnownNgrams, ngram_rows
from engram_cli.stats.statistic import Counted, Results, Statistic
from engram_cli.stats.statistics.top_ngrams import most_frequent
from engram_cli.view import Column, Estimate, Ngram, Table, View, counts

WORST = 10  # rows of an order of a layer
_ON_TERMINAL = 3  # of them
_IN_A_ROW = 4  # n-grams shown of a row
_FIRST_LOOK = 2**14


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramOnRow:
    """An n-gram on a row: `count` is its occurrences if `exact`, else an upper bound."""

    text: str
    count: int
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRow:
    """A row by its number within a head, its hits, and its most frequent n-grams."""

    layer: int
    order: int
    head: int
    row: int
    hits: int
    ngrams: tuple[NgramOnRow, ...]


def compute(counted: Counted, limit: int = WORST) -> tuple[WorstRow, ...]:
    """Return the rows, by layer and order, whose second n-gram is the most frequent."""
    counts, names, found = counted.counts, counted.names, []
    for entry in counts.layout.layers:
        plan = plan_layer(counts.layout, entry)
        hits = counts.hits[entry.layer]
        for index, known in enumerate(counted.known):
            for head, row, which in _worst(known, plan, index, counts.layout.heads, limit):
                at = entry.offsets[index * counts.layout.heads + head] + row
                ngrams = tuple(
                    NgramOnRow(
                        text=names.ngram(known.tokens[i]),
                        count=int(known.counts[i]),
                        exact=bool(known.exact[i]),
                    )
                    for i in which
                )
                found.append(
                    WorstRow(
                        layer=entry.layer,
                        order=known.order,
                        head=head,
                        row=row,
                        hits=int(hits[at]),
                        ngrams=ngrams,
                    )
                )
    return tuple(found)


def _worst(
    known: KnownNgrams, plan: LayerPlan, index: int, heads: int, limit: int
) -> list[tuple[int, int, list[int]]]:
    """Return (head, row, n-grams by frequency) of the rows that the most frequent n-grams share.

    Looks at the most frequent n-grams only, and at more of them where those share too few rows.
    """
    look = _FIRST_LOOK
    while True:
        top = most_frequent(known, look)
        rows = ngram_rows(known.tokens[top], plan, index, heads)
        shared = [
            (second, head, int(rows[head, second]))
            for head in range(heads)
            for second in _seconds(rows[head])[:limit]
        ]
        if len(shared) >= limit or look >= len(known.counts):
            break
        look *= 8
    return [
        (head, row, top[np.flatnonzero(rows[head] == row)[:_IN_A_ROW]].tolist())
        for _, head, row in sorted(shared)[:limit]
    ]


def _seconds(rows: NDArray[np.uint32]) -> list[int]:
    """Return the positions in `rows` [S] that are the second of their value, ascending."""
    order = np.argsort(rows, kind="stable")
    same = rows[order[1:]] == rows[order[:-1]]
    fresh = np.concatenate([[True], ~same[:-1]]) if len(same) else same
    return [int(at) for at in np.sort(order[1:][same & fresh])]


def view(found: tuple[WorstRow, ...], results: Results) -> Iterable[View]:
    """Draw one table."""
    columns = (*counts("layer", "order", "head", "row", "hits"), Column("n-grams on it", "ngrams"))
    rows = tuple(
        (
            *(each.layer, each.order, each.head, each.row, each.hits),
            tuple(Ngram(own.text, Estimate(own.count, bound=not own.exact)) for own in each.ngrams),
        )
        for each in found
    )
    title = "Rows that frequent n-grams share"
    yield View(
        name="worst-rows",
        title="The worst rows",
        lead="Rows where frequent n-grams meet. Look whether the pairs matter: other heads of the "
        "same n-grams fall elsewhere.",
        parts=(Table(title, columns, rows, limit=_ON_TERMINAL, group=2),),
        shown="asked",
    )


WORST_ROWS = Statistic(key="worst_rows", kind=tuple[WorstRow, ...], compute=compute, view=view)

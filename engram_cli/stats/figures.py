"""All figures that follow from counts alone: what a count and a merge both write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engram_cli.stats.by_use import uses_of
from engram_cli.stats.collisions import ColumnStats, OrderStats, column_stats, order_stats
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.heads import clean_heads, row_hits
from engram_cli.stats.known import known_ngrams
from engram_cli.stats.ngrams import Names, top_ngrams, worst_rows
from engram_cli.stats.occurrences import OccurrenceSample, drawn_ngrams
from engram_cli.stats.totals import Counts
from engram_cli.vocab.compress import CompressedVocab


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of each order, of each column, and the sections of stats.json."""

    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]
    sections: dict[str, Any]


def figures(
    counts: Counts,
    vocab: CompressedVocab | None = None,
    samples: Sequence[NgramSample] = (),
    occurrences: OccurrenceSample | None = None,
) -> Figures:
    """The figures of `counts`; `vocab` gives the n-grams texts.

    `samples`: n-grams to go by in the place of those in `counts`, one sample an order.
    `occurrences`: what figures by use and the most frequent n-grams go by; None for statistics of
    earlier versions, which have no such sample.
    """
    names = Names(counts.layout, vocab)
    chosen = tuple(samples) or counts.samples
    orders = counts.layout.orders
    drawn = [None] * len(orders) if occurrences is None else drawn_ngrams(occurrences, orders)
    uses = [
        None if some is None else uses_of(counts, sample, some)
        for sample, some in zip(chosen, drawn, strict=True)
    ]
    known = [known_ngrams(counts, sample, some) for sample, some in zip(chosen, drawn, strict=True)]
    return Figures(
        orders=order_stats(counts, chosen),
        columns=column_stats(counts, chosen, uses),
        sections={
            "clean_heads": clean_heads(counts, chosen, uses),
            "row_hits": row_hits(counts),
            "top_ngrams": top_ngrams(counts, chosen, known, names),
            "worst_rows": worst_rows(counts, names, known),
        },
    )

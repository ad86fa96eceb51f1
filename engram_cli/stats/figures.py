"""All figures that follow from counts alone: what a count and a merge both write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engram_cli.stats.collisions import ColumnStats, OrderStats, column_stats, order_stats
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.heads import clean_heads, row_hits
from engram_cli.stats.ngrams import Names, top_ngrams, worst_rows
from engram_cli.stats.totals import Counts
from engram_cli.vocab.compress import CompressedVocab


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of each order, of each column, and the sections of stats.json."""

    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]
    sections: dict[str, Any]


def figures(
    counts: Counts, vocab: CompressedVocab | None = None, samples: Sequence[NgramSample] = ()
) -> Figures:
    """The figures of `counts`; `vocab` gives the n-grams texts.

    `samples`: n-grams to go by in the place of those in `counts`, one sample an order.
    """
    names = Names(counts.layout, vocab)
    chosen = tuple(samples) or counts.samples
    return Figures(
        orders=order_stats(counts, chosen),
        columns=column_stats(counts, chosen),
        sections={
            "clean_heads": clean_heads(counts, chosen),
            "row_hits": row_hits(counts),
            "top_ngrams": top_ngrams(chosen, names),
            "worst_rows": worst_rows(counts, names, chosen),
        },
    )

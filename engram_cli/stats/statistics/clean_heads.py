"""How many of its heads an n-gram has for itself.

A head is clean for an n-gram when no other n-gram falls on its row there. A memory reads all heads
of an order together, so the other heads may still tell apart what one head blurs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engram_cli.charts import Bar, BarChart, Group, Slot, order_color, order_name, share_axis
from engram_cli.hashing.layout import LayerHash
from engram_cli.numbers import percent
from engram_cli.stats.sampling.by_use import Uses
from engram_cli.stats.sampling.ideal import ideal_shared
from engram_cli.stats.sampling.known import SampleHits
from engram_cli.stats.statistic import Counted, Results, Statistic
from engram_cli.stats.totals import Counts
from engram_cli.view import Column, Row, Table, View, counts, percents

_STEP = 2**17  # n-grams looked at together
_UNIT = 2**36


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanHeads:
    """The heads of an order that are clean, in one layer.

    `ngrams`, `occurrences`, `ideal`: the shares of distinct n-grams, of their occurrences, and of
    the n-grams under an ideal hash, for which 0..H heads are clean. `purity`: the mean over n-grams
    and heads of own occurrences / hits of the row.
    """

    layer: int
    order: int
    ngrams: tuple[float, ...]
    occurrences: tuple[float, ...]
    occurrences_error: tuple[float, ...] = ()
    ideal: tuple[float, ...]
    purity: float | None = None


def compute(counted: Counted) -> tuple[CleanHeads, ...]:
    """Return the clean heads of each layer and order."""
    return tuple(
        _clean_heads(entry, index, hits, counted.uses[index])
        for entry in counted.counts.layout.layers
        for index, hits in enumerate(counted.hits)
    )


def ideal_clean(moduli: Sequence[int], ngrams: float) -> list[float]:
    """Return the chances that 0..H heads are clean for an n-gram, if heads are independent.

    The Poisson-binomial distribution of heads that are each clean with their own chance.
    """
    chances = np.ones(1)
    for modulus in moduli:
        blurred = ideal_shared(modulus, ngrams)
        chances = np.convolve(chances, [blurred, 1.0 - blurred])
    return [float(chance) for chance in chances]


def _clean_heads(entry: LayerHash, index: int, found: SampleHits, use: Uses | None) -> CleanHeads:
    counts, sample = found.counts, found.sample
    heads, size = counts.layout.heads, len(sample.counts)
    by_ngram, by_use = np.zeros(heads + 1, dtype=np.int64), np.zeros(heads + 1)
    purity = 0  # in units, as whole numbers: the same in any order of the n-grams
    for begin in range(0, size, _STEP):
        times = sample.counts[begin : begin + _STEP]
        hits = found.of(entry, slice(begin, begin + _STEP))
        clean = np.count_nonzero(hits <= times, axis=0)  # heads with no more hits than it
        by_ngram += np.bincount(clean, minlength=heads + 1)
        by_use += np.bincount(clean, weights=times, minlength=heads + 1)
        purity += int(np.sum((np.minimum(times / hits, 1.0) * _UNIT).astype(np.int64)))
    occurrences, errors = (by_use / max(by_use.sum(), 1.0)).tolist(), [0.0] * (heads + 1)
    if use is not None:
        occurrences, errors = _by_use(use, counts, entry)
    moduli = entry.moduli[index * heads : (index + 1) * heads]
    return CleanHeads(
        layer=entry.layer,
        order=sample.order,
        ngrams=tuple((by_ngram / max(size, 1)).tolist()),
        occurrences=tuple(occurrences),
        occurrences_error=tuple(errors),
        ideal=tuple(ideal_clean(moduli, sample.distinct)),
        purity=purity / _UNIT / max(size * heads, 1),
    )


def _by_use(use: Uses, counts: Counts, entry: LayerHash) -> tuple[list[float], list[float]]:
    """Return the shares of occurrences by how many heads are clean, and their standard errors."""
    clean = np.count_nonzero(use.clean(counts, entry), axis=0)
    found = []
    for heads in range(counts.layout.heads + 1):
        base = np.full(len(clean), float(heads == 0))
        found.append(use.mean(base, (clean == heads) - base))
    return [share for share, _ in found], [error for _, error in found]


def view(found: tuple[CleanHeads, ...], results: Results) -> Iterable[View]:
    """Draw a histogram and one line of a table for each layer and order."""
    several = len({entry.layer for entry in found}) > 1
    columns = (
        *counts("layer", "order", "heads"),
        *(Column(name, "decimal", 2) for name in ("clean", "ideal")),
        *percents("none clean", "ideal", "all clean", "ideal", digits=1),
        Column("clean by use", "decimal", 2),
        *percents("purity", digits=1),
    )
    rows = tuple(
        (
            *(entry.layer, entry.order, len(entry.ideal) - 1),
            *(_mean(entry.ngrams), _mean(entry.ideal), entry.ngrams[0], entry.ideal[0]),
            *(entry.ngrams[-1], entry.ideal[-1], _mean(entry.occurrences), entry.purity),
        )
        for entry in found
    )
    yield View(
        name="clean-heads",
        title="How many heads are clean",
        lead="An n-gram's head is clean when nothing else of the corpus falls on its row. A model "
        "reads all heads together, so an n-gram is lost only when none is clean: "
        f"{percent(max(entry.ngrams[0] for entry in found))} of the n-grams of the worst order. "
        "Purity is the part of a row's hits that is the n-gram's own.",
        parts=(
            Row(tuple(_chart(entry, several) for entry in found)),
            Table("Clean heads: no other n-gram uses the n-gram's row", columns, rows),
        ),
    )


def _chart(entry: CleanHeads, several: bool) -> BarChart:
    color, heads = order_color(entry.order), len(entry.ngrams) - 1
    shares = zip(entry.ngrams, entry.occurrences, entry.ideal, strict=True)
    slots = tuple(
        Slot(
            f"{clean}",
            (
                Bar("n-grams", color, ngrams, ideal=ideal),
                Bar("look-ups", color, uses, light=True),
            ),
            f"{clean} of {heads} heads clean",
        )
        for clean, (ngrams, uses, ideal) in enumerate(shares)
    )
    layer = f", layer {entry.layer}" if several else ""
    return BarChart(
        name=f"clean-{entry.layer}-{entry.order}",
        title=f"Clean heads of {order_name(entry.order)}{layer}",
        description="For each number of clean heads, the share of distinct n-grams and of look-ups "
        "that have as many. The tick is an ideal hash's share of n-grams.",
        note="" if entry.purity is None else f"purity {percent(entry.purity)}",
        y=share_axis("share"),
        groups=(Group("clean heads", slots),),
    )


def _mean(shares: Sequence[float]) -> float:
    return sum(heads * share for heads, share in enumerate(shares))


CLEAN_HEADS = Statistic(key="clean_heads", kind=tuple[CleanHeads, ...], compute=compute, view=view)

"""Compares the n-grams of two sources: the shares that both have, with their standard errors.

The shares of n-grams come from samples by hash: below the lower threshold of two sources both are
complete. The shares of occurrences are means over positions drawn from one source. Whether the
n-gram at a position occurs in the other source follows from that source's sample by hash if its
hash is below the threshold, and otherwise from a bitmap of all n-grams of the source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.charts import order_name
from engram_cli.stats.sampling.distinct import EVERYTHING, NgramSample, lowest
from engram_cli.stats.sampling.known import places_in
from engram_cli.stats.sampling.occurrences import Drawn
from engram_cli.stats.sampling.text_ngrams import Membership
from engram_cli.stats.statistic import Results
from engram_cli.view import Column, Matrix, Table, View, counts, percents

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The overlap of sources for one order.

    `share[i][j]`, `ngrams[i][j]`: the share of the occurrences, and of the n-grams, of source i
    whose n-gram source j has too, with their standard errors; `distinct`: n-grams of each source.
    """

    order: int
    share: tuple[tuple[float, ...], ...]
    share_error: tuple[tuple[float, ...], ...] = ()
    ngrams: tuple[tuple[float, ...], ...] = ()
    ngrams_error: tuple[tuple[float, ...], ...] = ()
    distinct: tuple[float, ...] = ()
    distinct_error: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesResult:
    """The sources by name, their tokens, and how they overlap."""

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    overlap: tuple[Overlap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceNgrams:
    """What is known of one order of a source of `tokens` tokens."""

    tokens: int
    sample: NgramSample
    drawn: Drawn
    seen: Membership


def by_occurrence(sources: Sequence[SourceNgrams]) -> tuple[Floats, Floats]:
    """Return the shares [G, G] of the occurrences of i whose n-gram j has too, and errors."""
    share, error = np.eye(len(sources)), np.zeros((len(sources), len(sources)))
    loads = [other.seen.load for other in sources]
    for i, one in enumerate(sources):
        for j, other in enumerate(sources):
            if i != j:
                share[i, j], error[i, j] = _share(one, other, loads[j])
    return share, error


def by_ngram(samples: Sequence[NgramSample]) -> tuple[Floats, Floats]:
    """Return the shares [G, G] of the n-grams of source i that j has too, and errors."""
    share, error = np.eye(len(samples)), np.zeros((len(samples), len(samples)))
    for i, one in enumerate(samples):
        for j, two in enumerate(samples[:i]):
            threshold = min(one.threshold, two.threshold)
            a, b = _below(one, threshold), _below(two, threshold)
            both = len(np.intersect1d(a.hashes, b.hashes, assume_unique=True))
            for own, at in ((a, (i, j)), (b, (j, i))):
                size = len(own.hashes)
                share[at] = both / max(size, 1)
                if threshold < EVERYTHING:
                    smooth = (both + 1.0) / (size + 2.0)
                    seen = threshold / EVERYTHING
                    error[at] = math.sqrt((1.0 - seen) * smooth * (1.0 - smooth) / max(size - 1, 1))
    return share, error


def _share(one: SourceNgrams, other: SourceNgrams, load: float) -> tuple[float, float]:
    """Return the share of the occurrences of `one` whose n-gram `other` has, and its error.

    A bit that is set counts 1, one that is not -load / (1 - load): 0 in the mean for an n-gram that
    is not there.
    """
    whole, sample = one.sample.exact, one.sample
    hashes = sample.hashes if whole else one.drawn.hashes
    times = (sample.counts if whole else one.drawn.times).astype(np.float64)
    total = max(float(times.sum()), 1.0)
    weights = times / total
    told = hashes < np.uint64(other.sample.threshold - 1)
    told |= other.sample.exact
    there = places_in(other.sample, hashes) >= 0
    unset = ~told & ~other.seen.may_hold(hashes)
    odds = load / max(1.0 - load, 1e-9)
    values = np.where(told, there, np.where(unset, -odds, 1.0))
    share = float(np.sum(weights * values))
    # An n-gram that is not there is wrong at all its positions together.
    pairs = weights**2 if whole else times * (times - 1.0) / (total * max(total - 1.0, 1.0))
    variance = float(np.sum(pairs[unset])) * odds / max(1.0 - load, 1e-9)
    if not whole:
        unseen = max(1.0 - total / max(one.tokens, 1), 0.0)
        spread = float(np.sum(weights * (values - share) ** 2)) + 1.0 / total
        variance += unseen * spread / max(total - 1.0, 1.0)
    return min(max(share, 0.0), 1.0), min(math.sqrt(variance), 1.0)


def _below(sample: NgramSample, threshold: int) -> NgramSample:
    """Return the n-grams of a sample whose hash is below `threshold`."""
    return lowest(sample.order, sample.size, threshold, sample.hashes, sample.counts, sample.tokens)


def overlap_views(found: SourcesResult, results: Results) -> Iterable[View]:
    """Draw the sources, and a matrix for each order."""
    whole = sum(found.tokens) or 1
    tokens = zip(found.names, found.tokens, strict=True)
    columns = (Column("source", "text"), *counts("tokens"), *percents("share", digits=1))
    rows = tuple((name, own, own / whole) for name, own in tokens)
    matrices = [
        Matrix(
            name=f"overlap-{entry.order}",
            title=f"{order_name(entry.order)}: % of occurrences whose n-gram source",
            names=found.names,
            values=entry.share,
            errors=entry.share_error,
            extra=found.tokens,
            extra_name="tokens",
        )
        for entry in (found.overlap if len(found.names) > 1 else ())
    ]
    yield View(
        name="sources",
        title="Sources and what they share",
        lead="Read a line from the left: the share of that source's look-ups whose n-gram also "
        "occurs in the source above, with its standard error in points. Where little overlaps, a "
        "table of one source serves the other badly, and both together need nearly the sum of "
        "their rows.",
        parts=(Table("Sources", columns, rows, where="page"), *matrices),
    )

"""The most frequent n-grams of each order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.charts import order_name
from engram_cli.numbers import count
from engram_cli.stats.sampling.known import KnownNgrams, SampleHits
from engram_cli.stats.statistic import Counted, Results, Statistic
from engram_cli.view import Column, Estimate, Row, Table, View

TOP = 20  # n-grams of an order
_ON_TERMINAL = 10
_SURE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequentNgram:
    """An n-gram: `count` is its occurrences if `exact`, else an upper bound."""

    text: str
    tokens: tuple[int, ...] = ()
    count: int
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TopNgrams:
    """The most frequent n-grams of an order, chosen among those at `positions` drawn at random.

    `exact`: they were chosen among all n-grams. `excess`: by how much an upper bound is too high at
    most, for 19 of 20 n-grams. Earlier versions had no `positions`.
    """

    order: int
    exact: bool = True
    positions: int = 0
    excess: int = 0
    ngrams: tuple[FrequentNgram, ...]


def compute(counted: Counted, limit: int = TOP) -> tuple[TopNgrams, ...] | None:
    """Return the `limit` most frequent n-grams of each order.

    None where nothing finds them: the sample lacks n-grams, and no positions were drawn.
    """
    pairs = list(zip(counted.hits, counted.known, strict=True))
    if not all(hits.sample.exact or known.positions for hits, known in pairs):
        return None
    found = []
    for hits, known in pairs:
        best = tuple(
            FrequentNgram(
                text=counted.names.ngram(known.tokens[at]),
                tokens=tuple(known.tokens[at].tolist()),
                count=int(known.counts[at]),
                exact=bool(known.exact[at]),
            )
            for at in most_frequent(known, limit)
        )
        found.append(
            TopNgrams(
                order=hits.sample.order,
                exact=hits.sample.exact,
                positions=known.positions,
                excess=0 if all(e.exact for e in best) else _excess(hits),
                ngrams=best,
            )
        )
    return tuple(found)


def _excess(hits: SampleHits) -> int:
    """Return by how much an upper bound is too high at most, for 19 of 20 n-grams.

    What else falls on the rows of an n-gram does not depend on how frequent it is, so the
    sample tells: for its n-grams both are known.
    """
    return int(np.quantile(hits.least().least - hits.sample.counts, _SURE, method="higher"))


def most_frequent(known: KnownNgrams, limit: int) -> NDArray[np.intp]:
    """Return the indices of the `limit` most frequent n-grams, ties ordered by tokens."""
    counts = known.counts
    if len(counts) > limit:
        least = np.partition(counts, len(counts) - limit)[len(counts) - limit]
        among = np.flatnonzero(counts >= least)
    else:
        among = np.arange(len(counts))
    keys = [*known.tokens[among].T[::-1], np.iinfo(np.uint64).max - counts[among]]
    return np.asarray(among[np.lexsort(keys)][:limit], dtype=np.intp)


def view(found: tuple[TopNgrams, ...], results: Results) -> Iterable[View]:
    """Draw one table for each order."""
    yield View(
        name="ngrams",
        title="The most frequent n-grams",
        lead=f"{_scope(found)} A box is a token, after compression; ␣ is a space. What is frequent "
        "here is learned well with any table; it also drowns what shares its row.",
        parts=(Row(tuple(_table(entry, results.tokens) for entry in found)),),
        shown="asked",
    )


def _table(entry: TopNgrams, tokens: int) -> Table:
    rows = tuple(
        (each.text, each.count, Estimate(each.count, bound=not each.exact),
         each.count / max(tokens, 1))
        for each in entry.ngrams
    )  # fmt: skip
    columns = (Column("n-gram", "ngram"), Column("", bar=True), Column("count"),
               Column("share", "percent", 2))  # fmt: skip
    note = "" if entry.exact or entry.positions else "of the sample"
    if entry.excess:
        note = f"≤: too high by up to {count(entry.excess)} in 19 of 20 cases"
    title = f"Most frequent {order_name(entry.order)}"
    return Table(title, columns, rows, note=note, limit=_ON_TERMINAL)


def _scope(found: tuple[TopNgrams, ...]) -> str:
    """Say among which n-grams the list was chosen, and what its counts are."""
    if all(entry.exact for entry in found):
        return "All n-grams were counted."
    if not any(entry.positions for entry in found):  # of an earlier version
        return (
            "From the sample, which holds an n-gram by chance, not because it is frequent: others "
            "may be more frequent. Count the corpus again to know."
        )
    excess = max(entry.excess for entry in found)
    return (
        "A count with ≤ is the least number of hits among the n-gram's rows. It is too high by "
        f"{count(excess)} at most, for 19 of 20 n-grams; --exact counts all."
    )


TOP_NGRAMS = Statistic(key="top_ngrams", kind=tuple[TopNgrams, ...], compute=compute, view=view)

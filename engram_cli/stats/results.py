"""Computes, reads and draws the results of all statistics; goes over the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from engram_cli.errors import ArtifactError
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import brief, count, counted
from engram_cli.sizes import processors
from engram_cli.stats import STATISTICS
from engram_cli.stats.arrays import REMAKE
from engram_cli.stats.names import Names
from engram_cli.stats.partial import Partial
from engram_cli.stats.sampling.by_use import uses_of
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.known import SampleHits, known_ngrams
from engram_cli.stats.sampling.occurrences import Occurrences, OccurrenceSample, drawn_ngrams
from engram_cli.stats.sampling.text_ngrams import AllNgrams
from engram_cli.stats.statistic import Counted, Results, read_typed
from engram_cli.stats.stats_io import Statistics
from engram_cli.stats.totals import Counts
from engram_cli.stats.verdict_view import stated_verdict, verdict_view
from engram_cli.view import Column, Page, Table, View
from engram_cli.view import counts as table_columns
from engram_cli.vocab.compress import CompressedVocab

# What a view raises for results that no counting leaves.
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The files that were counted, as stats.json names them."""

    files: int = 0
    empty_files: int = 0


def count_results(
    counts: Counts,
    vocab: Callable[[], CompressedVocab | None] = lambda: None,
    samples: Sequence[NgramSample] = (),
    occurrences: OccurrenceSample | None = None,
) -> dict[str, object]:
    """Return the results that follow from `counts`, by statistic.

    `vocab` gives the vocabulary with the texts of n-grams; it is asked when they are needed.
    `samples`: n-grams to go by in place of those in `counts`, one sample for each order.
    `occurrences`: what results by use and the most frequent n-grams go by; None where documents
    were removed, and for statistics of earlier versions.
    """
    chosen = tuple(samples) or counts.samples
    orders = counts.layout.orders
    drawn = [None] * len(orders) if occurrences is None else drawn_ngrams(occurrences, orders)
    hits = tuple(SampleHits(counts=counts, sample=sample) for sample in chosen)
    with ThreadPoolExecutor(processors()) as pool:  # hits are gathered without the interpreter lock
        uses = pool.map(
            lambda own, some: None if some is None else uses_of(own, some),
            *(hits, drawn),
        )
        known = pool.map(partial(known_ngrams, counts), chosen, drawn)
        counted = Counted(
            counts=counts,
            hits=hits,
            uses=tuple(uses),
            known=tuple(known),
            names=Names(counts.layout, vocab()),
        )
        computes = {key: STATISTICS.load(key).compute for key in STATISTICS}
        tasks = [
            (key, pool.submit(compute, counted))
            for key, compute in computes.items()
            if compute is not None
        ]
        found = {key: task.result() for key, task in tasks}
    return {key: result for key, result in found.items() if result is not None}


def all_results(
    whole: Partial, vocab: Callable[[], CompressedVocab | None] = lambda: None
) -> dict[str, object]:
    """Return the results of all statistics of a corpus; `vocab` as in `count_results`."""
    every = [found.sample for found in whole.collected.values() if isinstance(found, AllNgrams)]
    every.sort(key=lambda sample: sample.order)
    drawn = whole.collected.get(Occurrences.name)
    occurrences = drawn if isinstance(drawn, OccurrenceSample) else None
    return count_results(whole.counts, vocab, every, occurrences) | whole.results()


def split_results(results: Results) -> dict[str, Any]:
    """Return results as the fields of a command's: `orders`, `columns`, `sections`, `verdict`.

    Raises ArtifactError for results that no counting leaves.
    """
    found = dict(results.found)
    orders, columns = found.pop("orders"), found.pop("columns")
    with _undamaged("verdict"):
        verdict = stated_verdict(results)
    return {"orders": orders, "columns": columns, "sections": found, "verdict": verdict}


def read_results(statistics: Statistics) -> Results:
    """Return the results in a statistics folder. Raises ArtifactError for damaged ones."""
    found = {
        key: STATISTICS.load(key).read(statistics.document[key])
        for key in STATISTICS
        if statistics.document.get(key) is not None
    }
    return Results(tokens=statistics.tokens, documents=statistics.documents, found=found)


def draw_results(results: Results) -> tuple[View, ...]:
    """Return the verdict and the views of all statistics, in the order of the registry.

    Raises ArtifactError for results that no counting leaves.
    """
    views: list[View] = []
    for key in ("verdict", *STATISTICS):
        with _undamaged(key):
            if key == "verdict":
                views += verdict_view(results)
                continue
            statistic = STATISTICS.load(key)
            result = results.get(statistic)
            views += [] if result in (None, ()) else statistic.view(result, results)
    return tuple(views)


@contextmanager
def _undamaged(key: str) -> Iterator[None]:
    """Raise ArtifactError in place of what damaged results raise in the block."""
    try:
        yield
    except _DAMAGE as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise ArtifactError(f"'{key}' cannot be drawn ({said})", REMAKE) from None


def statistics_page(statistics: Statistics, facts: Sequence[tuple[str, str]] = ()) -> Page:
    """Return the page of a statistics folder; `facts`: what is known of its origin.

    Raises ArtifactError for damaged results.
    """
    results, document, layout = read_results(statistics), statistics.document, statistics.layout
    corpus = read_typed(Corpus, document.get("corpus") or {}, "'corpus'")
    size = f"{count(results.tokens)} tokens, {counted(results.documents, 'document')}"
    size += ", joined" if statistics.joined else ""
    if corpus.files:
        some = f" ({count(corpus.empty_files)} empty)" if corpus.empty_files else ""
        size += f", {counted(corpus.files, 'file')}{some}"
    facts = (*facts, ("Counted", size))
    return Page(
        kicker="Engram · hash statistics",
        heading="What this corpus does to this table",
        title=f"Engram report: {brief(results.tokens)} tokens",
        facts=facts,
        views=(*draw_results(results), _layout_view(layout, str(document.get("tool_version")))),
        data=document,
    )


def _layout_view(layout: HashLayout, version: str) -> View:
    """Draw the layout that the results are of; `version`: of the engram that counted."""
    settings = (
        ("scheme", layout.scheme),
        ("orders", ", ".join(map(str, layout.orders))),
        ("heads of an order", f"{layout.heads}"),
        ("fold", layout.fold),
        ("filler id", count(layout.filler_id)),
        ("end-of-text id", "none" if layout.eos_id is None else count(layout.eos_id)),
        ("compressed vocabulary", f"{count(layout.compressed_size)} ids"),
        ("vocabulary digest", layout.vocab_digest or "none: raw token ids"),
        ("fingerprint", layout.fingerprint),
        ("counted by", f"engram {version}"),
    )
    rows = tuple(
        (entry.layer, entry.rows, len(entry.moduli), min(entry.moduli), max(entry.moduli))
        for entry in layout.layers
    )
    names = (Column("setting", "text"), Column("value", "text"))
    layers = (
        *table_columns("layer", "rows", "columns"),
        *(Column(name, "brief") for name in ("least rows of a head", "most")),
    )
    return View(
        name="layout",
        title="The layout",
        lead="Everything that decides which row an n-gram falls on. Equal fingerprints give equal "
        "rows.",
        parts=(
            Table("Settings", names, settings),
            Table("Layers", layers, rows),
        ),
        shown="page",
    )

"""How the n-grams of groups of documents overlap: the typed result and its view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engram_cli.stats.sources import Sources
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.view import Column, Matrix, Table, View, counts, order_name, percents


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


def view(found: SourcesResult, results: Results) -> Iterable[View]:
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
            beside=found.tokens,
            beside_name="tokens",
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


def _collect(plan: CollectorPlan) -> Sources | None:
    if plan.options.group_by is None:
        return None
    return Sources(plan.layout, plan.source_of, by=plan.options.group_by, exact=plan.exact)


SOURCES = Statistic(
    key="sources", kind=SourcesResult, view=view, collect=_collect, blank=Sources.blank_for
)

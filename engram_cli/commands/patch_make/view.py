"""Draws what patch make found: the facts that were not learned, what reads the rows, the damage."""

from __future__ import annotations

from collections.abc import Iterator

from engram_cli.commands.patch_make.result import Measured, PatchMakeResult, Predicted
from engram_cli.numbers import count, counted
from engram_cli.view import Column, Estimate, Table, View

_MISSED = 10  # facts that the terminal lists


def lines_of(result: PatchMakeResult) -> Iterator[tuple[str, str]]:
    """Yield what was done, by name."""
    after, before = count(result.exact_after), count(result.exact_before)
    yield "facts", f"{after} of {count(len(result.facts))} recalled, {before} before"
    orders = ", ".join(f"{count(n)} of {order}-grams" for order, n in result.rows_by_order.items())
    yield "rows", f"{count(result.rows)} changed of {count(result.candidates)} ({orders})"
    ended = "all facts learned"
    if result.steps == result.most_steps:
        ended = "the limit: more --steps, a larger --rate or more --rows-per-token teach more"
    yield "steps", f"{count(result.steps)}, {ended}"
    if result.predicted is not None:
        yield "predicted", _predicted(result.predicted)
    if result.measured is not None:
        yield "measured", _measured(result.measured)
        yield "", _loss(result.measured)


def _predicted(own: Predicted) -> str:
    return (
        f"{own.per_million:,.1f} look-ups of changed rows per million tokens of the corpus; "
        f"{own.candidates_per_million:,.1f} if all rows were changed"
    )


def _measured(own: Measured) -> str:
    return (
        f"KL divergence {own.divergence:.3g}{_interval(own.low, own.high)} nats per token, "
        f"{own.per_million:,.1f} look-ups per million of {counted(own.tokens, 'token')}"
    )


def _loss(own: Measured) -> str:
    return f"loss {own.loss_change:+.3g}{_interval(own.loss_low, own.loss_high)} nats per token"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"


def make_views(result: PatchMakeResult) -> Iterator[View]:
    """Yield the n-grams of the corpus that read changed rows, and the facts not learned."""
    if result.predicted is not None and result.predicted.ngrams:
        yield _ngrams(result.predicted)
    missed = [each for each in result.facts if not each.exact_after]
    if missed:
        columns = (Column("line"), Column("prompt", "text"), Column("target", "text"),
                   Column("loss", "decimal", 2))  # fmt: skip
        rows = tuple((each.line, each.prompt, each.target, each.loss_after) for each in missed)
        yield View(
            name="missed",
            title="Facts not recalled",
            lead="The model does not continue the prompt with the target.",
            parts=(Table("Facts not recalled", columns, rows, limit=_MISSED),),
        )


def _ngrams(own: Predicted) -> View:
    columns = (
        Column("n-gram", "ngram"),
        Column("occurs"),
        Column("rows"),
        Column("look-ups"),
        Column("", "text"),
    )
    rows = tuple(
        (
            each.text,
            each.count if each.exact else Estimate(each.count, bound=True),
            each.rows,
            each.lookups if each.exact else Estimate(each.lookups, bound=True),
            "of a fact" if each.edited else "",
        )
        for each in own.ngrams
    )
    more = own.ngrams_known - len(own.ngrams)
    return View(
        name="read-by",
        title="N-grams of the corpus that read changed rows",
        lead="The known n-grams whose look-ups read the most changed rows.",
        parts=(
            Table(
                "N-grams of the corpus that read changed rows",
                columns,
                rows,
                note=f"{count(more)} more with --ngrams" if more else "",
            ),
        ),
    )

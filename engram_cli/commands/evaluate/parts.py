"""Parts of a held-out text: by what the memory could know, token frequency and position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from engram_cli.charts import order_name
from engram_cli.commands.evaluate.known_ngrams import BEFORE, CONTINUED, order_partition
from engram_cli.commands.evaluate.result import Breakdown, Difference, TextPart, TokenChange
from engram_cli.numbers import count
from engram_cli.runtime.evaluation.sums import UNIT, LossSums, Partition, PartLoss

POSITION, FREQUENCY = "position", "frequency"
_POSITIONS = (1, 16, 64, 256, 1024, 4096, 16384)  # tokens of context where bands begin
_FREQUENCIES = (100, 1_000, 10_000)  # a token is frequent if it is one of so many
_CHANGES, _LEAST = 12, 3  # tokens listed, and how often they occur at least

Contrast = tuple[str, str]


def position_partition(context: int) -> Partition:
    """Return the partition by how many tokens the model has seen before a token."""
    begins = [begin for begin in _POSITIONS if begin < context]
    labels = [
        f"{count(begin)} to {count(end - 1)}" if end - 1 > begin else count(begin)
        for begin, end in zip(begins, [*begins[1:], context], strict=True)
    ]
    edges = np.array(begins[1:])
    return Partition(
        name=POSITION,
        labels=tuple(labels),
        codes=lambda window: np.searchsorted(edges, window.context, side="right"),
    )


def breakdowns_of(
    sums: LossSums, contrasts: Sequence[Contrast], orders: Sequence[int]
) -> Iterator[Breakdown]:
    """Yield the text parted in every way; `orders`: of n-grams that were looked for, or ()."""
    if orders:
        yield _breakdown(sums, BEFORE, "Longest n-gram of the corpus before the token", contrasts)
        title = "Longest n-gram of the corpus that ends with the token"
        yield _breakdown(sums, CONTINUED, title, contrasts)
        for order in orders:
            title = f"{order_name(order)} before the token"
            yield _breakdown(sums, order_partition(order), title, contrasts)
    yield _by_frequency(sums, contrasts)
    yield _breakdown(sums, POSITION, "Tokens of context", contrasts)


def difference_of(part: PartLoss, contrast: Contrast) -> Difference:
    """Return the difference of two variants over a part of the text."""
    variant, than = contrast
    found = part.interval(variant, than)
    return Difference(
        variant=variant,
        than=than,
        mean=found.mean,
        error=found.error,
        low=found.low,
        high=found.high,
    )


def token_changes(
    sums: LossSums, contrast: Contrast, texts: Callable[[list[int]], list[str]]
) -> tuple[tuple[TokenChange, ...], tuple[TokenChange, ...]]:
    """Return the tokens that gain most from a variant, and those that lose most, in all.

    `texts` gives the texts of token ids.
    """
    counts, units = sums.by_token()
    total = (units[contrast[0]] - units[contrast[1]]).astype(np.float64) * UNIT
    total[counts < _LEAST] = 0.0
    order = np.argsort(total, kind="stable")
    gaining = [int(i) for i in order[:_CHANGES] if total[i] < 0]
    losing = [int(i) for i in order[::-1][:_CHANGES] if total[i] > 0]

    def changes(ids: list[int]) -> tuple[TokenChange, ...]:
        return tuple(
            TokenChange(
                id=i,
                text=text,
                count=int(counts[i]),
                mean=float(total[i] / counts[i]),
                total=float(total[i]),
            )
            for i, text in zip(ids, texts(ids), strict=True)
        )

    return changes(gaining), changes(losing)


def _breakdown(sums: LossSums, name: str, title: str, contrasts: Sequence[Contrast]) -> Breakdown:
    whole = sums.whole.tokens
    parts = [
        TextPart(
            label=label,
            tokens=part.tokens,
            losses={variant: part.loss(variant) for variant in sums.variants},
            differences=tuple(difference_of(part, each) for each in contrasts),
            share=tuple(_share(part.units, each, whole) for each in contrasts),
        )
        for label, part in sums.parts(name).items()
    ]
    return Breakdown(name=name, title=title, parts=tuple(parts))


def _by_frequency(sums: LossSums, contrasts: Sequence[Contrast]) -> Breakdown:
    """Return the text parted by how often each token occurs in it."""
    counts, units = sums.by_token()
    whole = int(counts.sum())
    # One of n tokens or more often: counts x n >= whole.
    codes = np.sum([counts * each < whole for each in _FREQUENCIES], axis=0)
    labels = [*(f"1 in {count(each)} or more" for each in _FREQUENCIES), "less often"]
    parts = []
    for code, label in enumerate(labels):
        own = codes == code
        tokens = int(counts[own].sum())
        sums_of = {name: int(values[own].sum()) for name, values in units.items()}
        parts.append(
            TextPart(
                label=label,
                tokens=tokens,
                losses={name: _mean(value, tokens) for name, value in sums_of.items()},
                differences=tuple(
                    Difference(variant=a, than=b, mean=_mean(sums_of[a] - sums_of[b], tokens))
                    for a, b in contrasts
                ),
                share=tuple(_share(sums_of, each, whole) for each in contrasts),
            )
        )
    return Breakdown(name=FREQUENCY, title="How often the token occurs here", parts=tuple(parts))


def _mean(units: int, tokens: int) -> float:
    return units * UNIT / tokens if tokens else 0.0


def _share(units: dict[str, int], contrast: Contrast, whole: int) -> float:
    """Return what a part adds to the whole text's difference, in nats per token of the text."""
    return _mean(units[contrast[0]] - units[contrast[1]], whole)

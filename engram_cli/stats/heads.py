"""How many of its heads an n-gram has for itself: counts in, sections of stats.json out.

A head is clean for an n-gram when no other n-gram falls on its row there. A memory reads all heads
of an order together, so what one head blurs the others may still tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import LayerHash
from engram_cli.stats import kernels
from engram_cli.stats.by_use import Uses
from engram_cli.stats.collisions import ideal_shared
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.known import ngram_rows
from engram_cli.stats.totals import Counts

_STEP = 2**17  # n-grams looked at together
_BINS = 34
_UNIT = 2**36


def clean_heads(
    counts: Counts, samples: Sequence[NgramSample] = (), uses: Sequence[Uses | None] = ()
) -> list[dict[str, Any]]:
    """By layer and order: shares of n-grams, and of occurrences, by how many heads are clean.

    With them what an ideal hash gives for as many n-grams, and the purity: the mean over n-grams
    and heads of own occurrences / hits of the row. `samples`, `uses`: as for `column_stats`.
    """
    samples = samples or counts.samples
    uses = uses or [None] * len(samples)
    return [
        _clean_heads(counts, entry, index, sample, uses[index])
        for entry in counts.layout.layers
        for index, sample in enumerate(samples)
    ]


def row_hits(counts: Counts) -> list[dict[str, Any]]:
    """By layer and order: how many rows have 0 hits, 1, 2 or 3, 4 to 7 and so on."""
    found = []
    heads = counts.layout.heads
    for entry in counts.layout.layers:
        for index, order in enumerate(counts.layout.orders):
            first, last = index * heads, (index + 1) * heads - 1
            end = entry.offsets[last] + entry.moduli[last]
            bins = np.zeros(_BINS, dtype=np.int64)
            kernels.bin_hits(counts.hits[entry.layer][entry.offsets[first] : end], bins)
            used = int(np.flatnonzero(bins)[-1]) + 1
            found.append(
                {
                    "layer": entry.layer,
                    "order": order,
                    "bins": [0, *(2**power for power in range(used - 1))],
                    "rows": bins[:used].tolist(),
                }
            )
    return found


def ideal_clean(moduli: Sequence[int], ngrams: float) -> list[float]:
    """The chances that 0..H heads are clean for an n-gram, when heads are independent of another.

    The Poisson-binomial distribution of heads that are each clean with their own chance.
    """
    chances = np.ones(1)
    for modulus in moduli:
        blurred = ideal_shared(modulus, ngrams)
        chances = np.convolve(chances, [blurred, 1.0 - blurred])
    return [float(chance) for chance in chances]


def _clean_heads(
    counts: Counts, entry: LayerHash, index: int, sample: NgramSample, use: Uses | None
) -> dict[str, Any]:
    heads = counts.layout.heads
    by_ngram = np.zeros(heads + 1, dtype=np.int64)
    by_use = np.zeros(heads + 1)
    purity = 0  # in units, as whole numbers: the same in any order of the n-grams
    columns = slice(index * heads, (index + 1) * heads)
    plan = plan_layer(counts.layout, entry)
    offsets = np.array(entry.offsets[columns], dtype=np.int64)[:, None]
    hits = counts.hits[entry.layer]
    for begin in range(0, len(sample.counts), _STEP):
        part = sample.take(slice(begin, begin + _STEP))
        met = hits[ngram_rows(part.tokens, plan, index, heads) + offsets]
        clean = np.count_nonzero(met <= part.counts, axis=0)  # heads with no more hits than it
        by_ngram += np.bincount(clean, minlength=heads + 1)
        by_use += np.bincount(clean, weights=part.counts, minlength=heads + 1)
        own = np.minimum(part.counts / met, 1.0)
        purity += int(np.sum((own * _UNIT).astype(np.int64)))
    size = len(sample.counts)
    occurrences, errors = (by_use / max(by_use.sum(), 1.0)).tolist(), [0.0] * (heads + 1)
    if use is not None:
        occurrences, errors = _by_use(use, counts, entry)
    return {
        "layer": entry.layer,
        "order": sample.order,
        "ngrams": (by_ngram / max(size, 1)).tolist(),
        "occurrences": occurrences,
        "occurrences_error": errors,
        "ideal": ideal_clean(entry.moduli[columns], sample.distinct),
        "purity": purity / _UNIT / max(size * heads, 1),
    }


def _by_use(use: Uses, counts: Counts, entry: LayerHash) -> tuple[list[float], list[float]]:
    """The shares of the occurrences by how many heads are clean, and their standard errors."""
    clean = np.count_nonzero(use.clean(counts, entry), axis=0)
    found = []
    for heads in range(counts.layout.heads + 1):
        base = np.full(len(clean), float(heads == 0))
        found.append(use.mean(base, (clean == heads) - base))
    return [share for share, _ in found], [error for _, error in found]

"""The n-grams behind the figures: the most frequent ones, and those that fight over a row.

Counts and a vocabulary in, sections of stats.json out, with texts to be read by people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collisions import sample_rows
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.totals import Counts
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.groups import Member, group, readable
from engram_cli.vocab.lookup import HOLE
from engram_cli.vocab.normalize import REPLACEMENT

TOP = 20  # n-grams of an order
WORST = 10  # rows of an order of a layer
_IN_A_ROW = 4  # n-grams shown of a row
_FIRST_LOOK = 2**14


class Names:
    """Texts for compressed ids; "#17" where no vocabulary is at hand."""

    def __init__(self, layout: HashLayout, vocab: CompressedVocab | None = None) -> None:
        """`vocab` is left aside when it is not the layout's."""
        self._vocab, self._raw = None, layout.vocab_digest is None
        if vocab is not None:
            fits = len(vocab.lookup) == layout.vocab_size
            same = fits if self._raw else vocab.digest == layout.vocab_digest
            self._vocab = vocab if same else None

    def ngram(self, tokens: NDArray[np.int32]) -> str:
        """An n-gram int32[n], oldest token first, its tokens parted by spaces."""
        return " ".join(self.token(int(token)) for token in tokens)

    def token(self, token: int) -> str:
        """A compressed id: the key of its group, a lone token as it is; spaces visible."""
        vocab = self._vocab
        if vocab is None:
            return f"#{token}"
        if self._raw:
            if vocab.lookup[token] == HOLE:
                return f"#{token}"
            alone = Member(token_id=token, text=vocab.texts[token], token=vocab.tokens[token])
            return alone.readable
        found = group(vocab, token)
        if len(found.members) == 1 or REPLACEMENT in found.key:
            return found.members[0].readable
        return readable(found.key)

    def raw_token(self, token_id: int) -> str:
        """A raw token id by its own text; spaces visible."""
        vocab = self._vocab
        if vocab is None or token_id >= len(vocab.lookup) or vocab.lookup[token_id] == HOLE:
            return f"#{token_id}"
        text, token = vocab.texts[token_id], vocab.tokens[token_id]
        return Member(token_id=token_id, text=text, token=token).readable


def top_ngrams(
    samples: Sequence[NgramSample], names: Names, limit: int = TOP
) -> list[dict[str, Any]]:
    """The most frequent n-grams of each sample; `exact` says whether those are all n-grams."""
    found = []
    for sample in samples:
        best = [
            {
                "text": names.ngram(sample.tokens[at]),
                "tokens": sample.tokens[at].tolist(),
                "count": int(sample.counts[at]),
                "error": 0,
            }
            for at in _most_frequent(sample, limit)
        ]
        found.append({"order": sample.order, "exact": sample.exact, "ngrams": best})
    return found


def worst_rows(
    counts: Counts, names: Names, samples: Sequence[NgramSample] = (), limit: int = WORST
) -> list[dict[str, Any]]:
    """By layer and order: the rows whose second n-gram is the most frequent, and their n-grams.

    What that one suffers is certain, whichever n-grams a sample missed.
    """
    found = []
    for entry in counts.layout.layers:
        plan = plan_layer(counts.layout, entry)
        hits = counts.hits[entry.layer]
        for index, sample in enumerate(samples or counts.samples):
            for head, row, which in _worst(sample, plan, index, counts.layout.heads, limit):
                at = entry.offsets[index * counts.layout.heads + head] + row
                found.append(
                    {
                        "layer": entry.layer,
                        "order": sample.order,
                        "head": head,
                        "row": row,
                        "hits": int(hits[at]),
                        "ngrams": [
                            {"text": names.ngram(sample.tokens[i]), "count": int(sample.counts[i])}
                            for i in which
                        ],
                    }
                )
    return found


def _worst(
    sample: NgramSample, plan: LayerPlan, index: int, heads: int, limit: int
) -> list[tuple[int, int, list[int]]]:
    """(head, row, n-grams by frequency) of the rows that the most frequent n-grams share.

    Looks at the most frequent n-grams only, and at more of them where those share too few rows.
    """
    look = _FIRST_LOOK
    while True:
        top = _most_frequent(sample, look)
        rows = sample_rows(sample.take(top), plan, index, heads)
        shared = [
            (second, head, int(rows[head, second]))
            for head in range(heads)
            for second in _seconds(rows[head])[:limit]
        ]
        if len(shared) >= limit or look >= len(sample.counts):
            break
        look *= 8
    return [
        (head, row, top[np.flatnonzero(rows[head] == row)[:_IN_A_ROW]].tolist())
        for _, head, row in sorted(shared)[:limit]
    ]


def _seconds(rows: NDArray[np.uint32]) -> list[int]:
    """The positions in `rows` [S] that are the second of their value, ascending."""
    order = np.argsort(rows, kind="stable")
    same = rows[order[1:]] == rows[order[:-1]]
    fresh = np.concatenate([[True], ~same[:-1]]) if len(same) else same
    return [int(at) for at in np.sort(order[1:][same & fresh])]


def _most_frequent(sample: NgramSample, limit: int) -> NDArray[np.intp]:
    """The `limit` most frequent n-grams, the first ones first; ties by their tokens."""
    counts = sample.counts
    if len(counts) > limit:
        least = np.partition(counts, len(counts) - limit)[len(counts) - limit]
        among = np.flatnonzero(counts >= least)
    else:
        among = np.arange(len(counts))
    keys = [*sample.tokens[among].T[::-1], np.iinfo(np.uint64).max - counts[among]]
    return np.asarray(among[np.lexsort(keys)][:limit], dtype=np.intp)

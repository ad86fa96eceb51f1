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
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.known import KnownNgrams, hits_of, least_hits, ngram_rows
from engram_cli.stats.totals import Counts
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.groups import Member, group, readable
from engram_cli.vocab.lookup import HOLE
from engram_cli.vocab.normalize import REPLACEMENT

TOP = 20  # n-grams of an order
WORST = 10  # rows of an order of a layer
_IN_A_ROW = 4  # n-grams shown of a row
_FIRST_LOOK = 2**14
_SURE = 0.95


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
    counts: Counts,
    samples: Sequence[NgramSample],
    known: Sequence[KnownNgrams],
    names: Names,
    limit: int = TOP,
) -> list[dict[str, Any]]:
    """The most frequent n-grams of each order, of those `known`.

    `exact` of an order says whether those are all n-grams, `exact` of an n-gram whether its count
    is its own or an upper bound; `excess` by how much such a bound is too high at most, for 19 of
    20 n-grams.
    """
    found = []
    for sample, own in zip(samples, known, strict=True):
        best = [
            {
                "text": names.ngram(own.tokens[at]),
                "tokens": own.tokens[at].tolist(),
                "count": int(own.counts[at]),
                "exact": bool(own.exact[at]),
            }
            for at in most_frequent(own, limit)
        ]
        found.append(
            {
                "order": sample.order,
                "exact": sample.exact,
                "positions": own.positions,
                "excess": 0 if all(each["exact"] for each in best) else _excess(counts, sample),
                "ngrams": best,
            }
        )
    return found


def _excess(counts: Counts, sample: NgramSample) -> int:
    """By how much an upper bound is too high at most, for 19 of 20 n-grams.

    What else falls on the rows of an n-gram does not depend on how frequent it is, so the sample
    tells, for which both are known.
    """
    layout = counts.layout
    found = least_hits(layout, layout.layers, sample.tokens, hits_of(counts))
    return int(np.quantile(found.least - sample.counts, _SURE, method="higher"))


def worst_rows(
    counts: Counts, names: Names, known: Sequence[KnownNgrams], limit: int = WORST
) -> list[dict[str, Any]]:
    """By layer and order: the rows whose second n-gram is the most frequent, and their n-grams, of
    those `known`."""
    found = []
    for entry in counts.layout.layers:
        plan = plan_layer(counts.layout, entry)
        hits = counts.hits[entry.layer]
        for index, own in enumerate(known):
            for head, row, which in _worst(own, plan, index, counts.layout.heads, limit):
                at = entry.offsets[index * counts.layout.heads + head] + row
                found.append(
                    {
                        "layer": entry.layer,
                        "order": own.order,
                        "head": head,
                        "row": row,
                        "hits": int(hits[at]),
                        "ngrams": [
                            {
                                "text": names.ngram(own.tokens[i]),
                                "count": int(own.counts[i]),
                                "exact": bool(own.exact[i]),
                            }
                            for i in which
                        ],
                    }
                )
    return found


def _worst(
    known: KnownNgrams, plan: LayerPlan, index: int, heads: int, limit: int
) -> list[tuple[int, int, list[int]]]:
    """(head, row, n-grams by frequency) of the rows that the most frequent n-grams share.

    Looks at the most frequent n-grams only, and at more of them where those share too few rows.
    """
    look = _FIRST_LOOK
    while True:
        top = most_frequent(known, look)
        rows = ngram_rows(known.tokens[top], plan, index, heads)
        shared = [
            (second, head, int(rows[head, second]))
            for head in range(heads)
            for second in _seconds(rows[head])[:limit]
        ]
        if len(shared) >= limit or look >= len(known.counts):
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


def most_frequent(known: KnownNgrams, limit: int) -> NDArray[np.intp]:
    """The `limit` most frequent n-grams, the first ones first; ties by their tokens."""
    counts = known.counts
    if len(counts) > limit:
        least = np.partition(counts, len(counts) - limit)[len(counts) - limit]
        among = np.flatnonzero(counts >= least)
    else:
        among = np.arange(len(counts))
    keys = [*known.tokens[among].T[::-1], np.iinfo(np.uint64).max - counts[among]]
    return np.asarray(among[np.lexsort(keys)][:limit], dtype=np.intp)

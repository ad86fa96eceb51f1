"""A next-token table read back: rows in, the tokens that they name out, with what speaks for each.

A row is the mean of what followed, so its product with a token's vector estimates that token's
share. The heads of an order see the same n-gram among different strangers. Hits x share estimates
how often the token followed, with an error that goes as hits x the length of the row: all tokens of
a row point somewhere. Heads are weighted by the inverse of its square, as means of estimates are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import CorpusError
from engram_cli.hashing.hasher import StreamHasher, plan_layer
from engram_cli.hashing.kernels import mix_ngrams
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.tokens import TokenFile, split_starts
from engram_cli.table.store import TableStore

MOST_TOKENS = 2**26  # of the text: more are not read, a sample is taken anyway
CANDIDATES = 48  # tokens taken from each order
_LEAST_SHARE = 1e-8  # of the corpus, for tokens that are not in it
_LEAST_LENGTH = 1e-6  # of a row, in lengths of a vector, squared
_STEP = 128  # questions answered at a time: 66 MB of scores at 129,280 tokens
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Questions:
    """Q positions: `rows` int64[Q, C] of one layer, `truth` int64[Q] the token that follows each.

    `contexts` order: int64[Q], the mix of the n-gram that ends there.
    """

    rows: NDArray[np.int64]
    truth: NDArray[np.int64]
    contexts: dict[int, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.truth)

    def part(self, chosen: NDArray[np.integer] | slice) -> Questions:
        """Return some of them."""
        contexts = {order: mixes[chosen] for order, mixes in self.contexts.items()}
        return Questions(rows=self.rows[chosen], truth=self.truth[chosen], contexts=contexts)


def ask(layout: HashLayout, layer: int, file: TokenFile, count: int, joined: bool) -> Questions:
    """At most `count` positions of the text, spread evenly. Raises CorpusError when it has none."""
    ids, starts = split_starts(np.array(file.map()[:MOST_TOKENS]))
    if joined:
        starts[:] = False
    follows = np.flatnonzero(np.append(~starts[1:], False))
    if not len(follows):
        raise CorpusError(f"no token of {file.path} follows another", "give a longer text")
    chosen = follows[np.linspace(0, len(follows) - 1, min(count, len(follows))).astype(np.int64)]
    hasher = StreamHasher(layout)
    window = hasher.push(ids, starts=starts)
    columns = hasher.columns(window, layer)[:, chosen]
    entry = layout.layer(layer)
    plan = plan_layer(layout, entry)
    contexts = {}
    for index, order in enumerate(layout.orders):
        mix = np.empty(len(ids), dtype=np.int64)
        multipliers = plan.multipliers[index, :order]
        mix_ngrams(window.tokens, window.seen, plan.filler, multipliers, 0, mix)
        contexts[order] = mix[chosen]
    offsets = np.array(entry.offsets, dtype=np.int64)
    return Questions(
        rows=columns.T.astype(np.int64) + offsets,
        truth=ids[chosen + 1].astype(np.int64),
        contexts=contexts,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """K tokens for each of Q questions, and the evidence for them.

    `tokens` int64[Q, K]; `evidence` float32[Q, K, F]; `single` bool[Q, K] is False where a token
    stands a second time. `known` float32[Q]: the logarithm of the most often that the longest
    n-gram can have been in the corpus. `alone` order (and "one head"): int64[Q], the best token by
    it alone.
    """

    tokens: NDArray[np.int64]
    single: NDArray[np.bool_]
    evidence: Floats
    known: Floats
    alone: dict[str, NDArray[np.int64]]

    def part(self, chosen: NDArray[np.bool_]) -> Answers:
        """Return those to some of the questions, bool[Q]."""
        return Answers(
            tokens=self.tokens[chosen],
            single=self.single[chosen],
            evidence=self.evidence[chosen],
            known=self.known[chosen],
            alone={name: choice[chosen] for name, choice in self.alone.items()},
        )


class Reader:
    """Answers questions from the rows of one layer."""

    def __init__(
        self, table: TableStore, layer: int, embeddings: Embeddings, mean: NDArray[np.float64]
    ) -> None:
        """`mean` float64[V]: the share of each token that the rows were centred on."""
        self.layout: HashLayout = table.layout
        self._table, self._layer = table, layer
        self._hits = table.hits(layer)
        self._rarity = np.log(np.maximum(mean, _LEAST_SHARE)).astype(np.float32)
        found = [
            _centred(embeddings, layer, column, table.dim, mean)
            for column in range(table.layout.columns)
        ]
        self._vectors = [vectors for vectors, _ in found]
        self._squares = np.array([square for _, square in found], dtype=np.float32)

    def answer(self, questions: Questions, progress: Progress) -> Answers:
        """Return the tokens that the rows of each question name."""
        progress.start("reading the rows", len(questions), "positions")
        parts = []
        for begin in range(0, len(questions), _STEP):
            part = questions.part(slice(begin, begin + _STEP))
            parts.append(self._some(part))
            progress.advance(len(part))
        return Answers(
            tokens=np.concatenate([part.tokens for part in parts]),
            single=np.concatenate([part.single for part in parts]),
            evidence=np.concatenate([part.evidence for part in parts]),
            known=np.concatenate([part.known for part in parts]),
            alone={
                name: np.concatenate([part.alone[name] for part in parts])
                for name in parts[0].alone
            },
        )

    def _some(self, questions: Questions) -> Answers:
        count, columns = questions.rows.shape
        rows = self._table.rows(self._layer, questions.rows.reshape(-1)).reshape(count, columns, -1)
        hits = np.ones((count, columns), dtype=np.float32)
        if self._hits is not None:
            hits = np.maximum(self._hits[questions.rows], 1).astype(np.float32)
        weights = head_weights(rows, hits, self._squares, self.layout.heads)
        alone, picked = {}, []
        for order, heads in self._orders():
            scores = self._scores(rows, weights, heads)
            alone[f"{order}-grams"] = np.argmax(scores, axis=1)
            first = rows[:, heads.start] @ self._vectors[heads.start].T
            alone[f"{order}-grams, one head"] = np.argmax(first, axis=1)
            most = min(CANDIDATES, scores.shape[1] - 1)
            picked.append(np.argpartition(-scores, most, axis=1)[:, :most])
        tokens = np.concatenate(picked, axis=1).astype(np.int64)
        return Answers(
            tokens=tokens,
            single=_first_of_its_kind(tokens),
            evidence=self._evidence(rows, hits, weights, tokens),
            known=np.log(hits[:, -self.layout.heads :].min(axis=1)),
            alone=alone,
        )

    def _orders(self) -> Iterator[tuple[int, slice]]:
        """Yield (order, its columns)."""
        heads = self.layout.heads
        for index, order in enumerate(self.layout.orders):
            yield order, slice(index * heads, (index + 1) * heads)

    def _scores(self, rows: Floats, weights: Floats, heads: slice) -> Floats:
        """Return float32[Q, V]: the share of each token by the heads of an order."""
        scores: Floats = np.zeros((len(rows), len(self._vectors[0])), dtype=np.float32)
        for column in range(heads.start, heads.stop):
            scores += (rows[:, column] * weights[:, column, None]) @ self._vectors[column].T
        return scores

    def _evidence(
        self, rows: Floats, hits: Floats, weights: Floats, tokens: NDArray[np.int64]
    ) -> Floats:
        """Of each order: the share, its root, and the logarithm of the count that it comes to; at
        the end the logarithm of the token's share of the corpus."""
        features = []
        for _, heads in self._orders():
            share: Floats = np.zeros(tokens.shape, dtype=np.float32)
            for column in range(heads.start, heads.stop):
                own = np.einsum("qkw,qw->qk", self._vectors[column][tokens], rows[:, column])
                share += own * weights[:, column, None]
            seen = 1.0 / (weights[:, heads] / hits[:, heads]).sum(axis=1, keepdims=True)
            features += [
                share,
                np.sign(share) * np.sqrt(np.abs(share)),
                np.log1p(np.maximum(share * seen, 0.0)),
            ]
        features.append(self._rarity[tokens])
        return np.stack(features, axis=2)


def head_weights(rows: Floats, hits: Floats, squares: Floats, heads: int) -> Floats:
    """Return float32[Q, C], those of each order's `heads` summing to 1: what the shares that
    columns say are multiplied by to be added up.

    `rows` [Q, C, w]; `hits` [Q, C], 1 at least; `squares` [C]: vectors' usual squared lengths.
    A row that nothing fell on has nearly all the weight: the n-gram is new.
    """
    lengths = np.einsum("qcw,qcw->qc", rows, rows) / squares
    weights = 1.0 / (hits * np.maximum(lengths, np.float32(_LEAST_LENGTH)))
    by_order = weights.reshape(len(rows), -1, heads)
    return np.asarray(by_order / by_order.sum(axis=2, keepdims=True)).reshape(weights.shape)


def _centred(
    embeddings: Embeddings, layer: int, column: int, dim: int, mean: NDArray[np.float64]
) -> tuple[Floats, float]:
    """Return float32[V, w]: vectors less their mean, over the squares of their lengths, so that a
    vector's product with its own is 1; and the mean of the squares."""
    values, scale = embeddings.vectors(layer, column, dim)
    vectors = values.astype(np.float32) * np.float32(scale)
    vectors -= (mean[: len(vectors)] @ vectors.astype(np.float64)).astype(np.float32)
    squares = np.einsum("vw,vw->v", vectors, vectors)
    vectors /= np.maximum(squares, np.float32(1e-30))[:, None]
    return vectors, float(mean[: len(squares)] @ squares) or 1.0


def _first_of_its_kind(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return bool[Q, K]: False where the same token stands further left."""
    order = np.argsort(tokens, axis=1, kind="stable")
    ordered = np.take_along_axis(tokens, order, axis=1)
    again = np.zeros(tokens.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    single = np.empty(tokens.shape, dtype=bool)
    np.put_along_axis(single, order, ~again, axis=1)
    return single

"""What stats.json must say of a corpus, recomputed in the plainest way: dictionaries and sorting.

Nothing here uses the counting path of the package: texts are tokenised with `tokenizers`, hashed
with the NumPy reference, and every n-gram is kept in a dictionary.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engram_cli.hashing import reference
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.lookback import visible


@dataclass(frozen=True)
class Corpus:
    """Token ids int32 [T] of each document, in reading order; `names` are the documents' files."""

    names: tuple[str, ...]
    documents: tuple[NDArray[np.int32], ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))

    def of(self, names: Sequence[str]) -> Corpus:
        """The documents of these files."""
        chosen = [at for at, name in enumerate(self.names) if name in set(names)]
        return Corpus(tuple(names), tuple(self.documents[at] for at in chosen))


def read_corpus(files: Sequence[Path], tokenizer: Path) -> Corpus:
    """Each file is one document, read as UTF-8 with replacement characters."""
    encoder = Tokenizer.from_file(str(tokenizer))
    texts = [path.read_bytes().decode("utf-8", "replace") for path in files]
    ids = [
        np.array(encoder.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        for text in texts
    ]
    return Corpus(tuple(path.name for path in files), tuple(ids))


class Order:
    """All n-grams of one order, and the rows that each of them has in one layer."""

    def __init__(self, corpus: Corpus, layout: HashLayout, order: int) -> None:
        self.order = order
        self._index = layout.orders.index(order)
        self._layout = layout
        lookup = layout.lookup
        self._streams = [ids if lookup is None else lookup[ids] for ids in corpus.documents]
        parts = [self._ngrams(stream) for stream in self._streams]
        self.occurrences = np.concatenate(parts) if parts else np.empty((0, order), np.int32)
        self.ngrams, self.first, self.inverse, self.counts = np.unique(
            self.occurrences, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        self.inverse = self.inverse.reshape(-1)

    def _ngrams(self, stream: NDArray[np.int32]) -> NDArray[np.int32]:
        """int32 [T, n], oldest token first, the filler where a token may not be seen."""
        seen = visible(self._layout, stream, starts=None)
        found = np.full((len(stream), self.order), self._layout.filler_id, dtype=np.int32)
        for lag in range(self.order):
            may = np.flatnonzero(seen > lag)
            found[may, self.order - 1 - lag] = stream[may - lag]
        return found

    def column_rows(self, layer: int) -> NDArray[np.int64]:
        """int64 [heads, T]: the head-local rows of every occurrence, by the NumPy reference."""
        entry, heads = self._layout.layer(layer), self._layout.heads
        first = self._index * heads
        parts = [
            reference.hash_columns(self._layout, entry, stream)[first : first + heads]
            for stream in self._streams
        ]
        return np.concatenate(parts, axis=1).astype(np.int64)

    def moduli(self, layer: int) -> tuple[int, ...]:
        heads = self._layout.heads
        return self._layout.layer(layer).moduli[self._index * heads : (self._index + 1) * heads]

    def ngram_rows(self, layer: int) -> NDArray[np.int64]:
        """int64 [heads, D]: the head-local rows of every distinct n-gram."""
        return self.column_rows(layer)[:, self.first]

    @cached_property
    def by_frequency(self) -> list[tuple[int, tuple[int, ...]]]:
        """(count, tokens) of every n-gram, the most frequent first, ties by their tokens."""
        pairs = zip(self.counts.tolist(), map(tuple, self.ngrams.tolist()), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


@dataclass(frozen=True)
class Column:
    """The figures of one head of one order."""

    occupied: int
    max_hits: int
    shared: float
    shared_occurrences: float
    clean: NDArray[np.bool_]  # [D]: the n-gram is alone on its row
    purity: NDArray[np.float64]  # [D]: own occurrences / hits of the row
    hits: NDArray[np.int64]  # [rows]


def column(order: Order, rows: NDArray[np.int64], modulus: int) -> Column:
    """The truth about one column; `rows` int64 [D] of the n-grams of `order`."""
    hits: Counter[int] = Counter()
    ngrams_on: Counter[int] = Counter()
    for row, count in zip(rows.tolist(), order.counts.tolist(), strict=True):
        hits[row] += count
        ngrams_on[row] += 1
    alone = np.array([ngrams_on[row] == 1 for row in rows.tolist()])
    met = np.array([hits[row] for row in rows.tolist()])
    dense = np.zeros(modulus, dtype=np.int64)
    dense[list(hits)] = list(hits.values())
    return Column(
        occupied=len(hits),
        max_hits=max(hits.values()),
        shared=float(np.mean(~alone)),
        shared_occurrences=float(order.counts[~alone].sum() / order.counts.sum()),
        clean=alone,
        purity=order.counts / met,
        hits=dense,
    )


def overlap(orders: Mapping[str, Order]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares [G, G] of the occurrences, and of the n-grams, of source i that source j has too."""
    counts = [
        dict(zip(map(tuple, one.ngrams.tolist()), one.counts.tolist(), strict=True))
        for one in orders.values()
    ]
    by_use, by_ngram = np.eye(len(counts)), np.eye(len(counts))
    for i, own in enumerate(counts):
        total = max(sum(own.values()), 1)
        for j, other in enumerate(counts):
            both = own.keys() & other.keys()
            by_ngram[i, j] = len(both) / max(len(own), 1)
            by_use[i, j] = sum(own[key] for key in both) / total
    return by_use, by_ngram


def lru_hit_rate(rows: NDArray[np.int64], size: int) -> float:
    """The share of look-ups that a cache of the `size` last used rows has."""
    cache: OrderedDict[int, None] = OrderedDict()
    found = 0
    for row in rows.tolist():
        if row in cache:
            found += 1
            cache.move_to_end(row)
        else:
            cache[row] = None
            if len(cache) > size:
                cache.popitem(last=False)
    return found / max(len(rows), 1)


def hottest_share(hits: NDArray[np.int64], share: float) -> tuple[float, float]:
    """The share of look-ups that the hottest rows catch: with floor and ceiling of their number."""
    ordered = np.sort(hits)[::-1]
    caught = np.concatenate([[0], np.cumsum(ordered)]) / max(int(ordered.sum()), 1)
    exact = share * len(ordered)
    return float(caught[int(np.floor(exact))]), float(caught[int(np.ceil(exact))])

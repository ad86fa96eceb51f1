"""Names the n-grams that changed rows stand for, from a sample or from one pass over a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import known_ngrams
from engram_cli.commands.diff.result import NgramDiff, OrderNgrams
from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.encode import Encoder
from engram_cli.corpus.stream import TokenStream
from engram_cli.errors import TokenIdError
from engram_cli.hashing.hasher import StreamHasher, Window, plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.progress import Progress
from engram_cli.rows.source import RowSource
from engram_cli.stats.names import Names
from engram_cli.stats.sampling.distinct import hash_ngrams
from engram_cli.stats.sampling.known import ngram_rows
from engram_cli.stats.stats_io import Statistics
from engram_cli.table.compare.levels import LEAST, norm_of
from engram_cli.table.compare.rows import LayerChanges

MOST_NGRAMS = 2**19  # counted of an order; when there are more, the rarer half is dropped
_PENDING = 2**18  # occurrences gathered before they are counted
_STEP = 2**16  # positions or n-grams hashed together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """n-grams of one order: `tokens` int32[K, order], `counts` uint64[K], `exact` bool[K]."""

    tokens: NDArray[np.int32]
    counts: NDArray[np.uint64]
    exact: NDArray[np.bool_]
    dropped: bool = False


class ChangedRows:
    """The rows of which n-grams are wanted: those whose level is `least` or more."""

    def __init__(self, layout: HashLayout, layers: Sequence[LayerChanges], least: int) -> None:
        self.layout, self.least = layout, max(least, LEAST)
        self.layers = tuple(layers)

    def of(self, layer: LayerChanges, index: int) -> NDArray[np.int64]:
        """Return int64[heads]: how many rows of each head of an order (its index) there are."""
        heads, entry = self.layout.heads, layer.entry
        columns = range(index * heads, (index + 1) * heads)
        spans = [(entry.offsets[at], entry.offsets[at] + entry.moduli[at]) for at in columns]
        return np.array([np.count_nonzero(layer.levels[a:b] >= self.least) for a, b in spans])

    def weakest(
        self, layer: LayerChanges, index: int, rows: NDArray[np.uint32]
    ) -> NDArray[np.uint8]:
        """Return uint8[n]: the least level of the rows [heads, n] of n-grams of an order.

        Levels below `least` are 0: the other heads of such an n-gram are not looked at.
        """
        heads, levels = self.layout.heads, layer.levels
        offsets = layer.entry.offsets[index * heads : (index + 1) * heads]
        found = np.zeros(rows.shape[1], dtype=np.uint8)
        left: NDArray[np.int64] = np.arange(rows.shape[1])
        least = np.full(rows.shape[1], 255, dtype=np.uint8)
        for head, offset in enumerate(offsets):
            least = np.minimum(least, levels[rows[head, left].astype(np.int64) + offset])
            kept = least >= self.least
            left, least = left[kept], least[kept]
            if not len(left):
                return found
        found[left] = least
        return found

    def select(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the indices of the n-grams [K, order] whose rows are all wanted, in some layer."""
        kept = np.zeros(len(tokens), dtype=np.bool_)
        for layer in self.layers:
            for begin, rows in self.hashed(layer.entry, tokens):
                index = self.layout.orders.index(tokens.shape[1])
                kept[begin : begin + rows.shape[1]] |= self.weakest(layer, index, rows) > 0
        return np.flatnonzero(kept)

    def hashed(
        self, entry: LayerHash, tokens: NDArray[np.int32]
    ) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """Yield (first n-gram, rows [heads, n]) of n-grams [K, order] in pieces."""
        plan, index = plan_layer(self.layout, entry), self.layout.orders.index(tokens.shape[1])
        for begin in range(0, len(tokens), _STEP):
            part = np.ascontiguousarray(tokens[begin : begin + _STEP])
            yield begin, ngram_rows(part, plan, index, self.layout.heads)


def from_sample(changed: ChangedRows, source: RowSource, statistics: Statistics) -> list[Found]:
    """Return, for each order, the n-grams of the statistics' samples on the wanted rows."""
    found: list[Found] = []
    _, finders = known_ngrams(source, changed.layers[0].entry.layer, statistics)
    for finder in finders:
        assert finder is not None
        at = changed.select(finder.tokens)
        found.append(
            Found(
                tokens=finder.tokens[at],
                counts=finder.counts(at),
                exact=at < len(finder.sample.counts),
            )
        )
    return found


def from_corpus(
    changed: ChangedRows,
    files: Sequence[CorpusFile],
    options: CorpusOptions,
    encoder: Encoder | None,
    progress: Progress,
) -> tuple[list[Found], int]:
    """Read a corpus once; return its n-grams on the wanted rows, by order, and its tokens.

    Raises CorpusError, VocabularyError, TokenIdError, and EncoderDiffers where the fast encoder
    turns out to differ.
    """
    layout, hasher, tokens = changed.layout, StreamHasher(changed.layout), 0
    counters = [NgramCounter(order) for order in layout.orders]
    with closing(TokenStream(files, options, encoder).blocks()) as blocks:
        for block in blocks:
            try:
                window = hasher.push(block.ids, starts=block.starts)
            except TokenIdError as error:
                raise TokenIdError(f"{block.locate(0)}: {error.message}", error.hint) from None
            for begin in range(0, len(window), _STEP):
                _count(changed, hasher, window.part(begin, begin + _STEP), counters)
            tokens += len(window)
            progress.advance(block.size)
    return [counter.found() for counter in counters], tokens


def _count(
    changed: ChangedRows, hasher: StreamHasher, window: Window, counters: list[NgramCounter]
) -> None:
    layout, heads = changed.layout, changed.layout.heads
    kept = np.zeros((len(layout.orders), len(window)), dtype=np.bool_)
    for layer in changed.layers:
        columns = hasher.columns(window, layer.entry.layer)
        for index in range(len(layout.orders)):
            rows = columns[index * heads : (index + 1) * heads]
            kept[index] |= changed.weakest(layer, index, rows) > 0
    older = layout.max_order - 1
    for counter, own in zip(counters, kept, strict=True):
        at = np.flatnonzero(own)
        if not len(at):
            continue
        ngrams = np.empty((len(at), counter.order), dtype=np.int32)
        for lag in range(counter.order):
            seen = window.seen[at] > lag
            ngrams[:, -1 - lag] = np.where(seen, window.tokens[older + at - lag], layout.filler_id)
        counter.add(ngrams)


class NgramCounter:
    """Counts n-grams of one order in bounded memory: the rarer half goes when there are too many.

    Then counts are lower bounds, and a rare n-gram may be missing.
    """

    def __init__(self, order: int, most: int = MOST_NGRAMS) -> None:
        self.order, self._most = order, most
        self._hashes = np.empty(0, dtype=np.uint64)
        self._counts = np.empty(0, dtype=np.uint64)
        self._tokens = np.empty((0, order), dtype=np.int32)
        self._pending: list[NDArray[np.int32]] = []
        self._waiting = 0
        self.dropped = False

    def add(self, ngrams: NDArray[np.int32]) -> None:
        """Count occurrences of n-grams int32[k, order]."""
        self._pending.append(ngrams)
        self._waiting += len(ngrams)
        if self._waiting >= _PENDING:
            self._fold()

    def found(self) -> Found:
        """Return all that was counted."""
        self._fold()
        exact = np.full(len(self._counts), not self.dropped)
        return Found(tokens=self._tokens, counts=self._counts, exact=exact, dropped=self.dropped)

    def _fold(self) -> None:
        if not self._waiting:
            return
        fresh = np.concatenate(self._pending)
        self._pending, self._waiting = [], 0
        tokens = np.concatenate([self._tokens, fresh])
        hashes = np.concatenate([self._hashes, hash_ngrams(fresh)])
        counts = np.concatenate([self._counts, np.ones(len(fresh), dtype=np.uint64)])
        self._hashes, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        self._tokens = tokens[first]
        self._counts = np.zeros(len(first), dtype=np.uint64)
        np.add.at(self._counts, which, counts)
        if len(self._counts) > self._most:
            kept = np.sort(np.argsort(self._counts, kind="stable")[-(self._most // 2) :])
            self._hashes, self._counts = self._hashes[kept], self._counts[kept]
            self._tokens, self.dropped = self._tokens[kept], True


def described(changed: ChangedRows, found: Found, names: Names, limit: int) -> OrderNgrams:
    """Return what is shown of the n-grams of an order: the most frequent ones, by their texts."""
    layout, order = changed.layout, found.tokens.shape[1]
    index, heads = layout.orders.index(order), layout.heads
    # Of equally frequent ones the first by their tokens, whatever they came from.
    keys = (*found.tokens.T[::-1], -found.counts.astype(np.int64))
    best = np.lexsort(keys)[:limit]
    levels = np.zeros((len(changed.layers), len(best)), dtype=np.uint8)
    rows, explained, chance = 0, 0, 0.0
    for at, layer in enumerate(changed.layers):
        for begin, own in changed.hashed(layer.entry, found.tokens[best]):
            levels[at, begin : begin + own.shape[1]] = changed.weakest(layer, index, own)
        counts = changed.of(layer, index)
        rows += int(counts.sum())
        explained += _explained(changed, layer, index, found.tokens)
        moduli = layer.entry.moduli[index * heads : (index + 1) * heads]
        chance += prod(n / m for n, m in zip(counts.tolist(), moduli, strict=True))
    numbers = [layer.entry.layer for layer in changed.layers]
    listed = tuple(
        NgramDiff(
            order=order,
            text=names.ngram(found.tokens[which]),
            tokens=tuple(found.tokens[which].tolist()),
            count=int(found.counts[which]),
            exact=bool(found.exact[which]),
            layers=tuple(n for n, one in zip(numbers, levels[:, i], strict=True) if one),
            norm=norm_of(int(levels[:, i].max())),
        )
        for i, which in enumerate(best.tolist())
    )
    return OrderNgrams(
        order=order,
        found=len(found.counts),
        listed=listed,
        rows=rows,
        explained=explained,
        by_chance=min(chance, 1.0),
        dropped=found.dropped,
    )


def _explained(
    changed: ChangedRows, layer: LayerChanges, index: int, tokens: NDArray[np.int32]
) -> int:
    """Return how many wanted rows of an order are rows of these n-grams."""
    met = np.zeros(len(layer.levels), dtype=np.bool_)
    heads = changed.layout.heads
    offsets = np.array(layer.entry.offsets[index * heads : (index + 1) * heads], dtype=np.int64)
    for _, rows in changed.hashed(layer.entry, tokens):
        kept = changed.weakest(layer, index, rows) > 0
        met[(rows[:, kept].astype(np.int64) + offsets[:, None]).reshape(-1)] = True
    return int(np.count_nonzero(met))

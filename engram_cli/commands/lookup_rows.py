"""The look-ups of a text, one by one: ids in; rows, hits, norms and what else is on a row out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import counted_by, hits_reader
from engram_cli.hashing.hasher import StreamHasher, Window
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.rows.source import RowSource
from engram_cli.stats.names import Names
from engram_cli.stats.row_ngrams import RowNgram, RowNgrams, load_row_ngrams
from engram_cli.stats.stats_io import Statistics
from engram_cli.stats.totals import FULL

SHOWN_OTHERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherNgram:
    """A known n-gram, and how often the corpus has it; at most, unless `exact`."""

    text: str
    count: int
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One head of one order for one token.

    `row` is the head's own, from 0; `table_row` that of the layer's table. `hits`: look-ups of the
    corpus, None where they were not counted; `norm`: None where there are no vectors. `others`:
    known n-grams on this row, other than the token's, the most frequent first, and
    `others_known` how many. `shared_with`: positions of the other text with this row.
    """

    head: int
    row: int
    table_row: int
    hits: int | None
    norm: float | None
    others: tuple[OtherNgram, ...] = ()
    others_known: int = 0
    shared_with: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderLookup:
    """The n-gram that ends at a token, and its heads.

    `sampled`: how often it occurs, None where the sample does not hold it. `at_most`: how often it
    occurs at most, the least hits of its rows; None where no hits were counted.
    """

    order: int
    ngram: str
    sampled: int | None
    at_most: int | None
    heads: tuple[Lookup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLookup:
    """A token by its text, its id and its compressed id, and its n-grams by order."""

    position: int
    text: str
    token_id: int
    compressed_id: int
    orders: tuple[OrderLookup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRows:
    """How many look-ups of the first text fall on rows of the second, by why.

    `same`: the same n-gram is there. `chance`: only others are, on the same row.
    """

    order: int
    lookups: int
    same: int
    chance: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LookedUp:
    """The tokens of a text, and by order the n-grams int32[T, n] and rows uint32[H, T] behind."""

    tokens: tuple[TokenLookup, ...]
    exact: bool | None
    orders: tuple[int, ...]
    ngrams: tuple[NDArray[np.int32], ...] = field(repr=False)
    rows: tuple[NDArray[np.uint32], ...] = field(repr=False)


def look_up(
    rows: RowSource,
    entry: LayerHash,
    ids: NDArray[np.int64],
    statistics: Statistics | None,
    names: Names,
) -> LookedUp:
    """Look token ids [T] up in a layer. Raises TokenIdError, and what reading rows raises."""
    layout = rows.layout
    hasher = StreamHasher(layout)
    window = hasher.push(ids, starts=np.arange(len(ids)) == 0)
    columns = hasher.columns(window, entry.layer)
    heads = layout.heads
    place = columns.astype(np.int64) + np.array(entry.offsets, dtype=np.int64)[:, None]
    norms = None if rows.dim is None else _norms(rows, entry.layer, place)
    source = counted_by(rows, statistics)
    hits_at = None if source is None else hits_reader(source)
    hits = None if hits_at is None else hits_at(entry.layer, place)
    counted: Sequence[RowNgrams | None] = [None] * len(layout.orders)
    if statistics is not None and hits_at is not None:
        counted = load_row_ngrams(statistics, entry, hits_at)
    by_order = []
    ngrams = tuple(_ngrams(window, layout, order) for order in layout.orders)
    for index, order in enumerate(layout.orders):
        own = slice(index * heads, (index + 1) * heads)
        looked = _Order(
            order=order,
            ngrams=ngrams[index],
            local=columns[own],
            place=place[own],
            hits=None if hits is None else hits[own],
            norms=None if norms is None else norms[own],
            row_ngrams=counted[index],
            names=names,
        )
        by_order.append(list(looked.each()))
    fresh = window.tokens[layout.max_order - 1 :]
    tokens = tuple(
        TokenLookup(
            position=position,
            text=names.raw_token(int(token)),
            token_id=int(token),
            compressed_id=int(fresh[position]),
            orders=tuple(order[position] for order in by_order),
        )
        for position, token in enumerate(ids)
    )
    return LookedUp(
        tokens=tokens,
        exact=None if statistics is None else all(c.sample.exact for c in counted if c is not None),
        orders=layout.orders,
        ngrams=ngrams,
        rows=tuple(columns[i * heads : (i + 1) * heads] for i in range(len(layout.orders))),
    )


def with_shared(own: LookedUp, other: LookedUp) -> tuple[TokenLookup, ...]:
    """The tokens of `own`, each head with the positions of `other` that have its row."""
    found = []
    for token in own.tokens:
        orders = []
        for index, order in enumerate(token.orders):
            rows = other.rows[index]
            heads = tuple(
                replace(
                    head, shared_with=tuple(np.flatnonzero(rows[head.head] == head.row).tolist())
                )
                for head in order.heads
            )
            orders.append(replace(order, heads=heads))
        found.append(replace(token, orders=tuple(orders)))
    return tuple(found)


def shared_rows(own: LookedUp, other: LookedUp) -> tuple[SharedRows, ...]:
    """By order, how many look-ups of `own` meet a row of `other`: by the same n-gram, by chance."""
    found = []
    for index, order in enumerate(own.orders):
        same_ngram = (own.ngrams[index][:, None, :] == other.ngrams[index][None]).all(axis=2)
        meets = own.rows[index][:, :, None] == other.rows[index][:, None, :]
        by_ngram = (meets & same_ngram).any(axis=2)
        found.append(
            SharedRows(
                order=order,
                lookups=int(by_ngram.size),
                same=int(np.count_nonzero(by_ngram)),
                chance=int(np.count_nonzero(meets.any(axis=2) & ~by_ngram)),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Order:
    """One order of a text: `local` and `place` [H, T] are rows of a head and of the table."""

    order: int
    ngrams: NDArray[np.int32]
    local: NDArray[np.uint32]
    place: NDArray[np.int64]
    hits: NDArray[np.uint32] | None
    norms: NDArray[np.float32] | None
    row_ngrams: RowNgrams | None
    names: Names

    def each(self) -> Iterator[OrderLookup]:
        """The look-up of each token."""
        by_head = None if self.row_ngrams is None else self.row_ngrams.on(self.local)
        places = None if self.row_ngrams is None else self.row_ngrams.find(self.ngrams)
        most = None if self.hits is None else self.hits.min(axis=0)
        for at in range(self.local.shape[1]):
            own = -1 if places is None else int(places[at])
            yield OrderLookup(
                order=self.order,
                ngram=self.names.ngram(self.ngrams[at]),
                sampled=self._count(own),
                at_most=None if most is None or most[at] == FULL else int(most[at]),
                heads=tuple(
                    self._head(head, at, [] if by_head is None else by_head[head].get(int(row), []))
                    for head, row in enumerate(self.local[:, at])
                ),
            )

    def _count(self, place: int) -> int | None:
        if self.row_ngrams is None or place < 0:
            return None
        return int(self.row_ngrams.sample.counts[place])

    def _head(self, head: int, at: int, met: list[RowNgram]) -> Lookup:
        others = [each for each in met if not self._same(each, at)]
        return Lookup(
            head=head,
            row=int(self.local[head, at]),
            table_row=int(self.place[head, at]),
            hits=None if self.hits is None else int(self.hits[head, at]),
            norm=None if self.norms is None else float(self.norms[head, at]),
            others=tuple(self._other(each) for each in others[:SHOWN_OTHERS]),
            others_known=len(others),
        )

    def _same(self, ngram: RowNgram, at: int) -> bool:
        """Whether it is the n-gram that ends at a token."""
        assert self.row_ngrams is not None
        return bool(np.array_equal(self.row_ngrams.tokens[ngram.at], self.ngrams[at]))

    def _other(self, ngram: RowNgram) -> OtherNgram:
        assert self.row_ngrams is not None
        text = self.names.ngram(self.row_ngrams.tokens[ngram.at])
        return OtherNgram(text=text, count=ngram.count, exact=ngram.exact)


def _ngrams(window: Window, layout: HashLayout, order: int) -> NDArray[np.int32]:
    """int32[T, n], oldest token first, as the hash sees them: the filler at blocked positions."""
    count, older = len(window), layout.max_order - 1
    found = np.empty((count, order), dtype=np.int32)
    for lag in range(order):
        tokens = window.tokens[older - lag : older - lag + count]
        found[:, order - 1 - lag] = np.where(window.seen > lag, tokens, layout.filler_id)
    return found


def _norms(rows: RowSource, layer: int, place: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[C, T]: the Euclidean norms of the rows."""
    vectors = rows.vectors(layer, place.reshape(-1)).astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors)).reshape(place.shape)
    return np.asarray(norms, dtype=np.float32)

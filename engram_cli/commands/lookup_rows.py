"""The look-ups of a text, one by one: ids in; rows, hits, norms and what else is on a row out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import known_ngrams
from engram_cli.hashing.hasher import StreamHasher, Window
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.rows.source import FULL, RowSource
from engram_cli.stats.names import Names

if TYPE_CHECKING:  # with the kernels of counting
    from engram_cli.stats.sampling.row_ngrams import RowNgram, RowNgrams
    from engram_cli.stats.stats_io import Statistics

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
    hits_at, known = known_ngrams(rows, entry.layer, statistics)
    hits = None if hits_at is None else hits_at(entry.layer, place)
    by_order = []
    ngrams = tuple(window_ngrams(window, layout, order) for order in layout.orders)
    for index, own in enumerate(ngrams):
        lines = slice(index * heads, (index + 1) * heads)
        looked = _Order(
            ngrams=own,
            local=columns[lines],
            place=place[lines],
            hits=None if hits is None else hits[lines],
            norms=None if norms is None else norms[lines],
            known=known[index],
            names=names,
        )
        by_order.append([looked.at(position) for position in range(len(ids))])
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
        exact=None if statistics is None else all(k.sample.exact for k in known if k is not None),
        orders=layout.orders,
        ngrams=ngrams,
        rows=tuple(columns[i * heads : (i + 1) * heads] for i in range(len(layout.orders))),
    )


def with_shared(own: LookedUp, other: LookedUp) -> tuple[TokenLookup, ...]:
    """Return the tokens of `own`, each head with the positions of `other` that have its row."""
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


class _Order:
    """One order of a text: n-grams int32[T, n]; rows of a head and of the table, and what is
    stored of them, [H, T]."""

    def __init__(
        self,
        ngrams: NDArray[np.int32],
        local: NDArray[np.uint32],
        place: NDArray[np.int64],
        hits: NDArray[np.uint32] | None,
        norms: NDArray[np.float32] | None,
        known: RowNgrams | None,
        names: Names,
    ) -> None:
        self._ngrams, self._local, self._place = ngrams, local, place
        self._hits, self._norms, self._known, self._names = hits, norms, known, names
        self._sampled = None if known is None else known.find(ngrams)
        self._met = [{} for _ in local] if known is None else known.on(local)

    def at(self, position: int) -> OrderLookup:
        """Return the look-up of a token."""
        sampled, at_most = None, None
        if self._known is not None and self._sampled is not None and self._sampled[position] >= 0:
            sampled = int(self._known.sample.counts[self._sampled[position]])
        if self._hits is not None and (least := self._hits[:, position].min()) != FULL:
            at_most = int(least)
        return OrderLookup(
            order=self._ngrams.shape[1],
            ngram=self._names.ngram(self._ngrams[position]),
            sampled=sampled,
            at_most=at_most,
            heads=tuple(self._head(head, position) for head in range(len(self._local))),
        )

    def _head(self, head: int, position: int) -> Lookup:
        row, own = int(self._local[head, position]), self._ngrams[position]
        others: list[RowNgram] = []
        named: tuple[OtherNgram, ...] = ()
        if self._known is not None:
            tokens = self._known.tokens
            met = self._met[head].get(row, [])
            others = [each for each in met if not np.array_equal(tokens[each.at], own)]
            named = named_ngrams(self._known, others[:SHOWN_OTHERS], self._names)
        return Lookup(
            head=head,
            row=row,
            table_row=int(self._place[head, position]),
            hits=None if self._hits is None else int(self._hits[head, position]),
            norm=None if self._norms is None else float(self._norms[head, position]),
            others=named,
            others_known=len(others),
        )


def named_ngrams(
    known: RowNgrams, ngrams: Sequence[RowNgram], names: Names
) -> tuple[OtherNgram, ...]:
    """Return known n-grams by their texts."""
    return tuple(
        OtherNgram(text=names.ngram(known.tokens[each.at]), count=each.count, exact=each.exact)
        for each in ngrams
    )


def window_ngrams(window: Window, layout: HashLayout, order: int) -> NDArray[np.int32]:
    """Return the n-grams int32[T, order] as the hash sees them: the filler at blocked positions.

    The oldest token is first.
    """
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

"""The look-ups of a text, one by one: ids in; rows, hits, norms and what else is on a row out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.hasher import StreamHasher, Window, plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.rows.source import FULL, RowSource
from engram_cli.stats.names import Names

if TYPE_CHECKING:  # with the kernels of counting
    from engram_cli.stats.sampling.known import HitsAt
    from engram_cli.stats.sampling.row_ngrams import RowNgram, RowNgrams

SHOWN_OTHERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherNgram:
    """A known n-gram, and how often the corpus has it; at most, unless `exact`.

    `tokens`: its compressed ids, the oldest first.
    """

    text: str
    count: int
    exact: bool = True
    tokens: tuple[int, ...] = ()


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
    occurs at most, the least hits of its rows; None where no hits were counted. `absent`: whether
    the sample would hold it if the corpus had it. `clean`: heads on whose row no other n-gram of
    the corpus falls, at most so many where only `at_most` is known; None where no hits were
    counted. `tokens`: its compressed ids, the oldest first.
    """

    order: int
    ngram: str
    sampled: int | None
    at_most: int | None
    heads: tuple[Lookup, ...]
    absent: bool = False
    clean: int | None = None
    tokens: tuple[int, ...] = ()


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
    orders: tuple[int, ...]
    ngrams: tuple[NDArray[np.int32], ...] = field(repr=False)
    rows: tuple[NDArray[np.uint32], ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """What was counted of a layer: a reader of the hits of rows, a finder of n-grams by order.

    None where nothing counted the hits, and where there are no statistics.
    """

    hits_at: HitsAt | None
    known: tuple[RowNgrams | None, ...]

    @property
    def exact(self) -> bool | None:
        """Whether the samples hold every n-gram; None without statistics."""
        samples = [known.sample.exact for known in self.known if known is not None]
        return all(samples) if samples else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLookup:
    """A row by itself: its `values` float32[dim], and up to `limit` of the n-grams known on it.

    `row` is the head's own, from 0; `table_row` that of the layer's table. `values` and `norm` are
    None without vectors, `hits` where they were not counted, `known` without statistics.
    """

    layer: int
    order: int
    head: int
    row: int
    table_row: int
    rows: int
    hits: int | None
    norm: float | None
    values: tuple[float, ...] | None
    ngrams: tuple[OtherNgram, ...]
    known: int | None


def look_up(
    rows: RowSource, entry: LayerHash, ids: NDArray[np.int64], corpus: Corpus, names: Names
) -> LookedUp:
    """Look token ids [T] up in a layer. Raises TokenIdError, and what reading rows raises."""
    layout = rows.layout
    hasher = StreamHasher(layout)
    window = hasher.push(ids, starts=np.arange(len(ids)) == 0)
    columns = hasher.columns(window, entry.layer)
    heads = layout.heads
    ngrams = tuple(window_ngrams(window, layout, order) for order in layout.orders)
    by_order = [
        _at_rows(rows, entry, index, own, columns[index * heads : (index + 1) * heads], corpus,
                 names)
        for index, own in enumerate(ngrams)
    ]  # fmt: skip
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
        orders=layout.orders,
        ngrams=ngrams,
        rows=tuple(columns[i * heads : (i + 1) * heads] for i in range(len(layout.orders))),
    )


def look_up_ngrams(
    rows: RowSource,
    entry: LayerHash,
    ngrams: NDArray[np.int32],
    corpus: Corpus,
    names: Names,
) -> tuple[OrderLookup, ...]:
    """Look n-grams int32[S, order] up in a layer, wherever they may stand."""
    from engram_cli.stats.sampling.known import ngram_rows

    layout = rows.layout
    index = layout.orders.index(ngrams.shape[1])
    local = ngram_rows(ngrams, plan_layer(layout, entry), index, layout.heads)
    return _at_rows(rows, entry, index, ngrams, local, corpus, names)


def look_up_row(
    rows: RowSource,
    entry: LayerHash,
    column: int,
    row: int,
    corpus: Corpus,
    names: Names,
    limit: int,
) -> RowLookup:
    """Return one row of a column of a layer. Raises InputError for a row that is not there."""
    index, head = divmod(column, rows.layout.heads)
    if not 0 <= row < entry.moduli[column]:
        raise InputError(
            f"head {head} of order {rows.layout.orders[index]} has no row {row}",
            f"its rows are 0 to {entry.moduli[column] - 1}",
        )
    place = np.array([entry.offsets[column] + row], dtype=np.int64)
    vectors = None if rows.dim is None else rows.vectors(entry.layer, place)
    known, ngrams = corpus.known[index], []
    if known is not None:
        ngrams = known.on_row(head, row)
    return RowLookup(
        layer=entry.layer,
        order=rows.layout.orders[index],
        head=head,
        row=row,
        table_row=int(place[0]),
        rows=entry.moduli[column],
        hits=None if corpus.hits_at is None else int(corpus.hits_at(entry.layer, place)[0]),
        norm=None if vectors is None else float(_lengths(vectors)[0]),
        values=None if vectors is None else tuple(vectors[0].tolist()),
        ngrams=() if known is None else named_ngrams(known, ngrams[:limit], names),
        known=None if known is None else len(ngrams),
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


def _at_rows(
    rows: RowSource,
    entry: LayerHash,
    index: int,
    ngrams: NDArray[np.int32],
    local: NDArray[np.uint32],
    corpus: Corpus,
    names: Names,
) -> tuple[OrderLookup, ...]:
    """Return the look-ups of n-grams [T, n] of one order, whose rows `local` [H, T] are known."""
    heads = rows.layout.heads
    offsets = np.array(entry.offsets[index * heads : (index + 1) * heads], dtype=np.int64)
    place = local.astype(np.int64) + offsets[:, None]
    hits = None if corpus.hits_at is None else corpus.hits_at(entry.layer, place)
    norms = None
    if rows.dim is not None:
        norms = _lengths(rows.vectors(entry.layer, place.reshape(-1))).reshape(place.shape)
    order = _Order(ngrams, local, place, hits, norms, corpus.known[index], names)
    return tuple(order.at(position) for position in range(len(ngrams)))


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
        self._found = None if known is None else known.find(ngrams)
        self._met = [{} for _ in local] if known is None else known.on(local)

    def at(self, position: int) -> OrderLookup:
        """Return the look-up of a token."""
        sampled, absent, at_most, clean = None, False, None, None
        if self._known is not None and self._found is not None:
            places, certain = self._found
            if places[position] >= 0:
                sampled = int(self._known.sample.counts[places[position]])
            else:
                absent = bool(certain[position])
        if self._hits is not None:
            hits = self._hits[:, position]
            if (least := hits.min()) != FULL:
                at_most = int(least)
            count = least if sampled is None else sampled
            clean = int(np.count_nonzero(hits <= (0 if absent else count)))
        return OrderLookup(
            order=self._ngrams.shape[1],
            ngram=self._names.ngram(self._ngrams[position]),
            sampled=sampled,
            at_most=at_most,
            heads=tuple(self._head(head, position) for head in range(len(self._local))),
            absent=absent,
            clean=clean,
            tokens=tuple(self._ngrams[position].tolist()),
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
        OtherNgram(
            text=names.ngram(known.tokens[each.at]),
            count=each.count,
            exact=each.exact,
            tokens=tuple(known.tokens[each.at].tolist()),
        )
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


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32[n]: the Euclidean norms of vectors [n, dim]."""
    wide = vectors.astype(np.float64)
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return lengths.astype(np.float32)

"""What the workers of a cluster do to fill a table: partitions in, tokens out; tokens in, pairs
out; pairs in, the rows of a range out.

Errors a user can fix travel as values, as in `engines.tasks`. Arrays come read-only from a
cluster, and kernels take no such ones, so they are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.partitions import Plan
from engram_cli.corpus.stream import TokenStream
from engram_cli.engines.tasks import Reading, Report, check_version, opened_encoder
from engram_cli.errors import EngramError, InputError
from engram_cli.hashing.hasher import plan_layer
from engram_cli.stats.memory import base_bytes
from engram_cli.table.inits.base import Span
from engram_cli.table.inits.corpus.buckets import ColumnVectors, summed_rows
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.filled import column_vectors
from engram_cli.table.inits.corpus.pairs import Occurrences, TokenSpan, span_pairs
from engram_cli.table.inits.corpus.tokens import Piece, piece_of

Fetch: TypeAlias = Callable[[Any], NDArray[Any]]
"""Gives the array that a reference stands for."""

TASK_BYTES = 2 * 10**9  # of a task, unless the user says otherwise
_PIECE = 2**20  # tokens of a piece, at least
_PAIR = 24  # bytes of a pair and of its entry in a bucket
_TOKEN_BYTES = 40  # bytes of a token while its pairs are made, for each of its lags
_VECTOR = 24  # bytes of a value of the vectors while they are made
_LONGEST = 2**24  # tokens: beyond, less and less of them are equal
_LEAST_ROOM = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMemory:
    """How the bytes of a summing task are spent.

    `rows`: of a range at most, `pairs`: at a time, `span`: tokens whose pairs are made at once.
    """

    rows: int
    pairs: int
    span: int

    @classmethod
    def divide(cls, total: int, tokens: int, dim: int, lags: int) -> TaskMemory:
        """What a task of `total` bytes has room for next to the vectors of `tokens` tokens.

        Half is sums and rows, half is pairs, of which a block may be a third. Raises InputError.
        """
        fixed = base_bytes(text=False) + _VECTOR * tokens * dim
        room = total - fixed
        if room < _LEAST_ROOM:
            raise InputError(
                f"{total / 1e6:,.0f} MB a task", f"give --memory {(fixed + _LEAST_ROOM) // 10**6}MB"
            )
        return cls(
            rows=max(room // 2 // (12 * dim + 8), 1),
            pairs=room // 2 // _PAIR,
            span=min(room // (2 * _TOKEN_BYTES * lags), _LONGEST),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FillShared:
    """What all tasks of a fill need, sent once; `most`: pairs added at a time."""

    version: str
    what: Occurrences
    embeddings: Embeddings
    dim: int
    followed: NDArray[np.int64] | None
    most: int


def token_pieces(reading: Reading, plan: Plan) -> Iterator[Piece | Report]:
    """The words of some partitions, a few MB at a time, and a report in the end."""
    try:
        with opened_encoder(reading, plan.size) as encoder:
            stream = TokenStream(plan.files, reading.options, encoder, begins=plan.begins)
            held: list[Piece] = []
            for block in stream.blocks():
                held.append(piece_of(block, reading.layout))
                if sum(len(piece.words) for piece in held) >= _PIECE:
                    yield _joined(held)
                    held = []
            if held:
                yield _joined(held)
        yield Report(empty_files=stream.empty_files, cuts=stream.cuts)
    except EngramError as error:
        yield Report(error=error)


def _joined(pieces: Sequence[Piece]) -> Piece:
    words = np.concatenate([piece.words for piece in pieces])
    return Piece(words=words, size=sum(piece.size for piece in pieces))


def part_vectors(shared: FillShared, layer: int, column: int) -> tuple[Report, Any]:
    """The vectors of a column."""
    try:
        check_version(shared.version)
        followed = None if shared.followed is None else np.array(shared.followed)
        return Report(), column_vectors(shared.embeddings, layer, column, shared.dim, followed)
    except EngramError as error:
        return Report(error=error), None


def part_pairs(
    shared: FillShared, layer: int, order: int, words: NDArray[np.uint32], span: TokenSpan
) -> tuple[Report, Any]:
    """The united pairs of an order in a span of the corpus, uint64[2 * n]."""
    try:
        check_version(shared.version)
        return Report(), span_pairs(shared.what, layer, order, words, span)
    except EngramError as error:
        return Report(error=error), None


def part_rows(
    shared: FillShared,
    layer: int,
    column: int,
    span: Span,
    vectors: ColumnVectors,
    blocks: Sequence[Any],
    fetch: Fetch,
) -> tuple[Report, Any]:
    """float32[n, dim]: the rows of a range of a column, from references to all pairs of its order.

    One block after the other is fetched, so that memory does not depend on the corpus.
    """
    try:
        check_version(shared.version)
        layout = shared.what.layout
        own = ColumnVectors(
            values=np.array(vectors.values), scale=vectors.scale, mean=np.array(vectors.mean)
        )
        plan = plan_layer(layout, layout.layer(layer))
        pairs = (fetch(block) for block in blocks)
        return Report(), summed_rows(pairs, plan, column, span, own, most=shared.most)
    except EngramError as error:
        return Report(error=error), None

"""Counts the (n-gram, token) pairs of an order: which tokens its n-grams add to their rows.

All heads of an order see the same n-grams, and a row depends on an n-gram through its mix alone.
So equal (mix, token) pairs are added up once, by blocks of the token file, and every head hashes
a quarter as many pairs as the corpus has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.hasher import StreamHasher, Window, plan_layer
from engram_cli.hashing.kernels import mix_ngrams
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT, Progress
from engram_cli.table.inits.base import Span
from engram_cli.table.inits.corpus import kernels
from engram_cli.table.inits.corpus.tokens import START, TokenFile, split_starts

STEP = 2**18  # tokens hashed at a time by one thread
PARTS_BITS = 10
_LEAST_SLOTS = 4
# 2**15 slots, 512 KB, let 37 and 49 % of 2- and 3-gram pairs through, 2**17 33 and 45 %, but those
# are no longer in the L2 cache: 18 and 20 ns a token instead of 6 and 12.
_TABLE_BITS = 15
_WHOLE = 2**24  # pairs of the largest blocks: 268 MB; 63 M pairs at once unite 8 % further
_SHARES = 4  # of the parts of a block, for each thread
_UNITERS = 2  # one block is written while threads unite the next one
_LEAST = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPairs:
    """What a corpus adds to rows: a token file read as one layout and rule have it.

    `follow`: the token that follows an n-gram (next-token) or its own tokens (token-mean);
    `joined`: n-grams and followers run across documents.
    """

    layout: HashLayout
    file: TokenFile
    follow: bool
    joined: bool

    def lags(self, order: int) -> range:
        """Return how many places back the tokens of an n-gram are; -1: the one that follows."""
        return range(-1, 0) if self.follow else range(order)

    def most_pairs(self, order: int) -> int:
        """Return an upper bound of the number of pairs."""
        return self.file.tokens * len(self.lags(order))

    def follower_counts(self, threads: int = 1) -> NDArray[np.int64]:
        """Return int64[V]: how often each token follows another one in its sequence."""
        words = self.file.map()

        def count(thread: int) -> NDArray[np.int64]:
            counts = np.zeros(self.layout.vocab_size, dtype=np.int64)
            for begin in range(thread * STEP, len(words), threads * STEP):
                kernels.count_words(np.array(words[begin : begin + STEP]), self.joined, counts)
            return counts

        with ThreadPoolExecutor(threads) as pool:
            counts = sum(pool.map(count, range(threads)), np.zeros((), dtype=np.int64))
        if len(words) and (self.joined or words[0] < START):
            counts[words[0] & np.uint32(START - 1)] -= 1  # it follows nothing
        return counts


def write_pairs(
    path: Path,
    what: TokenPairs,
    layer: int,
    order: int,
    *,
    memory: int,
    threads: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Write the pairs of one order of a layer to the new file `path`. Raises OSError.

    `memory` bytes bound the block of pairs that is united at a time; a pair may come once a block.
    """
    lags = what.lags(order)
    most = min(max(memory // (2 * _UNITERS * 16 * len(lags)), _LEAST), _WHOLE // _UNITERS)
    reader = _Reader(what, layer, order, what.file.map())
    uniters = [_Uniter(min(most, what.file.tokens), len(lags), threads) for _ in range(_UNITERS)]
    written: deque[Future[None]] = deque()
    with (
        path.open("wb", buffering=0) as file,
        ThreadPoolExecutor(threads) as pool,
        ThreadPoolExecutor(1) as writer,
    ):

        def write(parts: list[NDArray[np.uint64]]) -> None:
            for pairs in parts:
                file.write(pairs.data)

        for index, begin in enumerate(range(0, what.file.tokens, most)):
            if len(written) == _UNITERS:
                written.popleft().result()
            end = min(begin + most, what.file.tokens)
            parts = list(uniters[index % _UNITERS].united(reader, _steps(begin, end), pool))
            written.append(writer.submit(write, parts))
            progress.advance(end - begin)
        for each in written:
            each.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """The words begin..end-1 of a token file, with their context first..last-1."""

    begin: int
    end: int
    first: int
    last: int


def token_spans(what: TokenPairs, most: int) -> list[TokenSpan]:
    """Return the token file in spans of `most` tokens, each with the context it needs."""
    older, tokens = what.layout.max_order, what.file.tokens
    found = []
    for begin in range(0, tokens, most):
        end = min(begin + most, tokens)
        last = min(end + 1, tokens)
        found.append(TokenSpan(begin=begin, end=end, first=max(begin - older, 0), last=last))
    return found


def span_pairs(
    what: TokenPairs, layer: int, order: int, words: NDArray[np.uint32], span: TokenSpan
) -> NDArray[np.uint64]:
    """Return the united pairs of one order of a layer in a span, [2 * n]; `words` are its own.

    Takes about 40 bytes for each token and each of `what.lags`.
    """
    reader = _Reader(what, layer, order, words)
    begin, end = span.begin - span.first, span.end - span.first
    uniter = _Uniter(end - begin, len(reader.lags), 1)
    with ThreadPoolExecutor(1) as pool:
        return np.concatenate(list(uniter.united(reader, _steps(begin, end), pool)))


def _steps(begin: int, end: int) -> list[Span]:
    return [(first, min(first + STEP, end)) for first in range(begin, end, STEP)]


def has_mixes(layout: HashLayout) -> bool:
    """Return whether n-grams of a layout have a mix to be united by, and so can fill rows."""
    return layout.fold not in ("powers", "oldest-first-late")


def check_fold(layout: HashLayout) -> None:
    """Raise InputError for a layout whose n-grams have no mix to be united by."""
    if not has_mixes(layout):
        raise InputError(
            f"rows of {layout.scheme} cannot be filled from a corpus",
            "build them with --init normal or zeros",
        )


class _Reader:
    """Gives the mixes of any part of `words`, and the token of each at a lag."""

    def __init__(self, what: TokenPairs, layer: int, order: int, words: NDArray[np.uint32]) -> None:
        self._what, self._order, self._words = what, order, words
        self._plan = plan_layer(what.layout, what.layout.layer(layer))
        self._index = what.layout.orders.index(order)
        self._own = local()
        self.lags = what.lags(order)

    def pairs(self, span: tuple[int, int]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Yield (mix int64[T], token int32[T] or -1) of the positions of `span`, for each lag."""
        begin, end = span
        older = self._what.layout.max_order
        first, last = max(begin - older, 0), min(end + 1, len(self._words))
        ids, starts = split_starts(self._words[first:last])
        if self._what.joined:
            starts[:] = False
        window = self._window(ids[: end - first], starts[: end - first], begin - first)
        mix = np.empty(len(window), dtype=np.int64)
        plan = self._plan
        multipliers = plan.multipliers[self._index, : self._order]
        mix_ngrams(window.tokens, window.seen, plan.filler, multipliers, 0, mix)
        raw = ids.astype(np.int32)
        for lag in self.lags:
            tokens = np.full(len(mix), -1, dtype=np.int32)
            if lag < 0:
                raw[starts] = -1  # it follows nothing
                following = raw[begin - first + 1 :]
                tokens[: len(following)] = following
            else:
                skipped = max(lag - (begin - first), 0)  # before the first token of the file
                back = raw[begin - first - lag + skipped : end - first - lag]
                tokens[skipped:] = np.where(window.seen[skipped:] > lag, back, -1)
            yield mix, tokens

    def _window(self, ids: NDArray[np.uint32], starts: NDArray[np.bool_], older: int) -> Window:
        """Return the positions after the first `older` tokens, at least N where there are as many:
        these decide what the positions see."""
        hasher: StreamHasher | None = getattr(self._own, "hasher", None)
        if hasher is None:
            hasher = self._own.hasher = StreamHasher(self._what.layout)
        hasher.reset()
        hasher.push(ids[:older], starts=starts[:older])
        return hasher.push(ids[older:], starts=starts[older:])


class _Uniter:
    """Unites the pairs of blocks of a token file; its memory is kept from block to block."""

    def __init__(self, tokens: int, lags: int, threads: int) -> None:
        """`tokens`: of a block at most; each adds `lags` pairs at most."""
        self._threads = threads
        self._bits = min(max((tokens * lags).bit_length(), _LEAST_SLOTS), _TABLE_BITS)
        self._tables = [np.zeros(2 << self._bits, dtype=np.uint64) for _ in range(threads)]
        share = min(-(-tokens // threads) + STEP, tokens) * lags + 1
        self._lists = [np.empty(2 * share, dtype=np.uint64) for _ in range(threads)]
        self._out = np.empty(2 * tokens * lags, dtype=np.uint64)
        self._own = local()

    def united(
        self, reader: _Reader, spans: list[Span], pool: ThreadPoolExecutor
    ) -> Iterator[NDArray[np.uint64]]:
        """Yield the pairs of the spans in parts by hash, each of which fits in the L2 cache.

        A part is valid until the next call.
        """
        threads, shift = range(self._threads), 64 - PARTS_BITS

        def combine(thread: int) -> NDArray[np.uint64]:
            return self._combined(reader, spans[thread :: self._threads], thread)

        def split(thread: int) -> None:
            kernels.split(lists[thread], shift, places[thread], self._out)

        def measure(pairs: NDArray[np.uint64]) -> NDArray[np.int64]:
            sizes = np.zeros(1 << PARTS_BITS, dtype=np.int64)
            kernels.part_sizes(pairs, shift, sizes)
            return sizes

        lists = list(pool.map(combine, threads))
        sizes = np.stack(list(pool.map(measure, lists)))
        whole = sizes.sum(axis=0)
        begins = np.cumsum(whole) - whole
        places = begins + np.cumsum(sizes, axis=0) - sizes
        list(pool.map(split, threads))
        ends = list(zip(begins.tolist(), whole.tolist(), strict=True))
        share = -(-len(ends) // (_SHARES * self._threads))  # a task for each part took 40 us of it
        shares = [ends[at : at + share] for at in range(0, len(ends), share)]
        for found in pool.map(lambda own: [self._unite(*each) for each in own], shares):
            yield from found

    def _combined(self, reader: _Reader, spans: list[Span], thread: int) -> NDArray[np.uint64]:
        """Return the pairs of the spans; most pairs that repeat soon are added up."""
        slots, out, used = self._tables[thread], self._lists[thread], 0
        for span in spans:
            for mix, tokens in reader.pairs(span):
                used = kernels.combine(mix, tokens, slots, 64 - self._bits, out, used)
        return out[: 2 * kernels.drain(slots, out, used)]

    def _unite(self, begin: int, size: int) -> NDArray[np.uint64]:
        bits = max(int(size * 3 // 2).bit_length(), _LEAST_SLOTS)
        slots = getattr(self._own, "slots", None)
        if slots is None or len(slots) < 2 << bits:
            slots = self._own.slots = np.zeros(2 << bits, dtype=np.uint64)
        part = self._out[2 * begin : 2 * (begin + size)]
        return part[: 2 * kernels.unite(part, slots[: 2 << bits], 64 - bits, part)]

"""Counts a stream of token blocks: the loop between the corpus and the counting threads."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import ReadPosition, TokenBlock
from engram_cli.errors import InputError, TokenIdError, UndecodableError
from engram_cli.hashing.hasher import StreamHasher, Window
from engram_cli.hashing.layout import HashLayout
from engram_cli.malloc import Trimmer
from engram_cli.progress import SILENT, Progress
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.counters import Counter
from engram_cli.stats.counting.holdout import Holdout
from engram_cli.stats.counting.thread_pool import MOST_THREADS, Make, ThreadPool
from engram_cli.stats.counting.token_chunk import Segments, SegmentSplitter, TokenChunk
from engram_cli.stats.sampling.distinct import DEFAULT_SAMPLE
from engram_cli.stats.state import State, nested, part_of, scalar, take, take_scalar, unsound
from engram_cli.stats.totals import Counts


class Checkpointer(Protocol):
    """Saves the state of a `CorpusCounter` while it counts; see `checkpoint.FolderCheckpointer`."""

    def due(self) -> bool:
        """Return whether the counter is to save now."""

    def save(self, read_position: ReadPosition, counter: CorpusCounter) -> None:
        """Save the state. Raises KeyboardInterrupt when the count is to end there."""

    def save_last(self, read_position: ReadPosition, counter: CorpusCounter) -> None:
        """Save the state before the count ends in an error."""


def count_blocks(
    blocks: Generator[TokenBlock, None, None],
    layout: HashLayout,
    *,
    sample_size: int = DEFAULT_SAMPLE,
    threads: int = 1,
    join_documents: bool = False,
    collectors: Sequence[Collector] = (),
    holdout: Holdout | None = None,
    progress: Progress = SILENT,
) -> Counts:
    """Count the rows that the tokens of `blocks` look up, and sample their n-grams.

    Each document is a sequence of its own, with `join_documents` each partition. The result does
    not depend on how the tokens are cut into blocks, nor on `threads`. `collectors` see every
    chunk. What `holdout` takes out is checked but not counted, and look-back ends there.
    Raises TokenIdError naming file, document and position.
    """
    counter = CorpusCounter(
        layout,
        sample_size=sample_size,
        threads=threads,
        join_documents=join_documents,
        collectors=collectors,
        holdout=holdout,
    )
    return counter.count(blocks, progress)


class CorpusCounter:
    """Counts one stream of blocks, from its start or from a saved state."""

    def __init__(
        self,
        layout: HashLayout,
        *,
        sample_size: int = DEFAULT_SAMPLE,
        threads: int = 1,
        join_documents: bool = False,
        collectors: Sequence[Collector] = (),
        holdout: Holdout | None = None,
    ) -> None:
        """See `count_blocks`."""
        self.size = 0  # of the blocks so far
        self._joined = join_documents
        self._counter = Counter(layout, sample_size, collectors, min(threads, MOST_THREADS))
        self._threads = threads
        self._feed = _Feed(layout, join_documents, holdout)

    @property
    def tokens(self) -> int:
        """How many tokens have been counted."""
        return self._feed.tokens

    def count(
        self,
        blocks: Generator[TokenBlock, None, None],
        progress: Progress = SILENT,
        checkpointer: Checkpointer | None = None,
    ) -> Counts:
        """Count the blocks. Raises TokenIdError.

        `checkpointer` saves the state now and then, and before text that is not UTF-8.
        """
        trimmer = Trimmer()
        read_position: ReadPosition | None = None  # where the state is whole
        with closing(blocks), ThreadPool(self._counter, self._threads) as pool:
            try:
                for block in blocks:
                    read_position = None
                    make = self._feed.chunk(block) if len(block.ids) else None
                    if make is not None:
                        pool.push(make)
                    self.size += block.size
                    read_position = block.read_position
                    progress.advance(block.size)
                    trimmer.advance(block.size)
                    if (
                        checkpointer is not None
                        and read_position is not None
                        and checkpointer.due()
                    ):
                        pool.drain()
                        checkpointer.save(read_position, self)
            except UndecodableError:
                if checkpointer is not None and read_position is not None:
                    pool.drain()
                    checkpointer.save_last(read_position, self)
                raise
        feed = self._feed
        return self._counter.counts(
            tokens=feed.tokens, documents=feed.documents, joined=self._joined
        )

    def state(self) -> State:
        """Return all that another counter needs to continue; no thread may be counting."""
        own = {"size": scalar(self.size)}
        return own | nested(counter=self._counter.state(), feed=self._feed.state())

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError, after which this one is unusable."""
        self.size = take_scalar(state, "size")
        self._counter.restore(part_of(state, "counter"))
        self._feed.restore(part_of(state, "feed"))


class _Feed:
    """Turns blocks into chunks, without the held-out tokens."""

    def __init__(self, layout: HashLayout, join_documents: bool, holdout: Holdout | None) -> None:
        self.tokens = self.documents = 0
        self._partition = self._begin = 0  # the one at hand, and the tokens before it
        self._join_documents = join_documents
        self._holdout = holdout
        self._splitter = SegmentSplitter()
        self._hasher, self._checker = StreamHasher(layout), StreamHasher(layout)

    def state(self) -> State:
        """Return the position in the stream, and what is held out."""
        history, carry = self._hasher.memory
        own = {
            "tokens": scalar(self.tokens),
            "documents": scalar(self.documents),
            "partition": scalar(self._partition),
            "begin": scalar(self._begin),
            "history": history,
            "carry": scalar(carry),
        }
        holdout = {} if self._holdout is None else self._holdout.state()
        return own | nested(stretcher=self._splitter.state(), holdout=holdout)

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        self.tokens = take_scalar(state, "tokens")
        self.documents = take_scalar(state, "documents")
        self._partition = take_scalar(state, "partition")
        self._begin = take_scalar(state, "begin", 0, self.tokens)
        history = take(state, "history", np.int32, (-1,))
        try:
            self._hasher.remember(history, take_scalar(state, "carry"))
        except InputError:
            raise unsound("history") from None
        self._splitter.restore(part_of(state, "stretcher"))
        if self._holdout is not None:
            self._holdout.restore(part_of(state, "holdout"))

    def chunk(self, block: TokenBlock) -> Make | None:
        """Return what makes the chunk of a block; None when all of it is held out.

        A new partition resets all that depends on the order of reading. Raises TokenIdError for
        held-out tokens.
        """
        if block.partition != self._partition:
            self._partition, self._begin = block.partition, self.tokens
            self._hasher.reset()
        segments = self._splitter.push(block.starts, block.files)
        cuts = None
        if self._holdout is not None:
            kept = self._holdout.push(block, segments)
            if len(kept.held.ids):
                _window(self._checker, kept.held, kept.held.starts)
            block, segments, cuts = kept.block, kept.segments, kept.cuts
        if not len(block.ids):
            return None
        starts = cuts if self._join_documents else block.starts
        if cuts is not None and starts is not None:
            starts = starts | cuts
        make = partial(
            _make_chunk, block, starts, segments, self.tokens - self._begin, *self._hasher.memory
        )
        self._pass_by(block, starts)
        self.tokens += len(block.ids)
        self.documents += int(np.count_nonzero(block.starts))
        return make

    def _pass_by(self, block: TokenBlock, starts: NDArray[np.bool_] | None) -> None:
        """Take what the next block must know of this one: the last N tokens say all of it.

        An id that no token has is left to the thread that hashes the block.
        """
        last = slice(-self._hasher.layout.max_order, None)
        with suppress(TokenIdError):
            self._hasher.push(block.ids[last], starts=None if starts is None else starts[last])


def _make_chunk(
    block: TokenBlock,
    starts: NDArray[np.bool_] | None,
    segments: Segments,
    position: int,
    history: NDArray[np.int32],
    carry: int,
    hasher: StreamHasher,
) -> TokenChunk:
    """Return the chunk of a block. `history`, `carry`: the hasher's memory of what went before.

    Raises TokenIdError.
    """
    hasher.remember(history, carry)
    return TokenChunk(
        window=_window(hasher, block, starts),
        ids=block.ids,
        starts=block.starts,
        segments=segments,
        files=block.files,
        position=position,
        labels=block.labels,
    )


def _window(hasher: StreamHasher, block: TokenBlock, starts: NDArray[np.bool_] | None) -> Window:
    try:
        return hasher.push(block.ids, starts=starts)
    except TokenIdError as error:
        where = block.locate(_first_bad(block.ids, hasher.layout))
        what = error.message.partition(", at position")[0]
        raise TokenIdError(f"{where} (counted from 0): {what}", error.hint) from None


def _first_bad(ids: NDArray[np.integer], layout: HashLayout) -> int:
    """Return the index of the first id that no token has; there is one."""
    wide = ids.astype(np.int64)
    bad = (wide < 0) | (wide >= layout.vocab_size)
    if layout.lookup is not None:
        bad |= layout.lookup[np.where(bad, 0, wide)] < 0
    return int(np.argmax(bad))

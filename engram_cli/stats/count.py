"""Token blocks in, counts out: the loop between the corpus and the threads that count."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import TokenBlock
from engram_cli.errors import TokenIdError
from engram_cli.hashing.hasher import StreamHasher, Window
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT, Progress
from engram_cli.stats.collector import Collector
from engram_cli.stats.counters import Counter, Counts
from engram_cli.stats.crew import Crew
from engram_cli.stats.distinct import DEFAULT_SAMPLE
from engram_cli.stats.holdout import Holdout
from engram_cli.stats.memory import Trimmer
from engram_cli.stats.passage import Passage, Stretcher


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

    Each document is a sequence of its own unless `join_documents`. The result does not depend on
    how the tokens are cut into blocks, nor on `threads`. `collectors` see all of it on the way.
    What `holdout` takes out is checked but not counted, and look-back ends there. Raises
    TokenIdError naming file, document and position.
    """
    counter = Counter(layout, sample_size, threads, collectors)
    feed = _Feed(layout, join_documents, holdout)
    trimmer = Trimmer()
    with closing(blocks), Crew(counter.shares) as crew:
        for block in blocks:
            passage = feed.passage(block) if len(block.ids) else None
            if passage is not None:
                crew.push(passage)
            progress.advance(block.size)
            trimmer.advance(block.size)
    return counter.counts(tokens=feed.tokens, documents=feed.documents, joined=join_documents)


class _Feed:
    """Turns blocks into passages, without what is held out."""

    def __init__(self, layout: HashLayout, join_documents: bool, holdout: Holdout | None) -> None:
        self.tokens = self.documents = 0
        self._join_documents = join_documents
        self._holdout = holdout
        self._stretcher = Stretcher()
        self._hasher, self._checker = StreamHasher(layout), StreamHasher(layout)

    def passage(self, block: TokenBlock) -> Passage | None:
        """The passage of a block; None when all of it is held out. Raises TokenIdError."""
        stretches = self._stretcher.push(block.starts, block.files)
        cuts = None
        if self._holdout is not None:
            kept = self._holdout.push(block, stretches)
            if len(kept.held.ids):
                _window(self._checker, kept.held, kept.held.starts)
            block, stretches, cuts = kept.block, kept.stretches, kept.cuts
        if not len(block.ids):
            return None
        starts = cuts if self._join_documents else block.starts
        if cuts is not None and starts is not None:
            starts = starts | cuts
        passage = Passage(
            window=_window(self._hasher, block, starts),
            ids=block.ids,
            starts=block.starts,
            stretches=stretches,
            files=block.files,
            position=self.tokens,
        )
        self.tokens += len(block.ids)
        self.documents += int(np.count_nonzero(block.starts))
        return passage


def _window(hasher: StreamHasher, block: TokenBlock, starts: NDArray[np.bool_] | None) -> Window:
    try:
        return hasher.push(block.ids, starts=starts)
    except TokenIdError as error:
        where = block.locate(_first_bad(block.ids, hasher.layout))
        what = error.message.partition(", at position")[0]
        raise TokenIdError(f"{where} (counted from 0): {what}", error.hint) from None


def _first_bad(ids: NDArray[np.integer], layout: HashLayout) -> int:
    """The index of the first id that no token has; there is one."""
    wide = ids.astype(np.int64)
    bad = (wide < 0) | (wide >= layout.vocab_size)
    if layout.lookup is not None:
        bad |= layout.lookup[np.where(bad, 0, wide)] < 0
    return int(np.argmax(bad))

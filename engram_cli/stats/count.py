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
    progress: Progress = SILENT,
) -> Counts:
    """Count the rows that the tokens of `blocks` look up, and sample their n-grams.

    Each document is a sequence of its own unless `join_documents`. The result does not depend on
    how the tokens are cut into blocks, nor on `threads`. `collectors` see all of it on the way.
    Raises TokenIdError naming file, document and position.
    """
    counter = Counter(layout, sample_size, threads, collectors)
    stretcher = Stretcher()
    hasher = StreamHasher(layout)
    trimmer = Trimmer()
    tokens = documents = 0
    with closing(blocks), Crew(counter.shares) as crew:
        for block in blocks:
            if len(block.ids):
                crew.push(
                    Passage(
                        window=_window(hasher, block, join_documents),
                        ids=block.ids,
                        starts=block.starts,
                        stretches=stretcher.push(block.starts, block.files),
                        files=block.files,
                        position=tokens,
                    )
                )
                tokens += len(block.ids)
                documents += int(np.count_nonzero(block.starts))
            progress.advance(block.size)
            trimmer.advance(block.size)
    return counter.counts(tokens=tokens, documents=documents, joined=join_documents)


def _window(hasher: StreamHasher, block: TokenBlock, join_documents: bool) -> Window:
    try:
        return hasher.push(block.ids, starts=None if join_documents else block.starts)
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

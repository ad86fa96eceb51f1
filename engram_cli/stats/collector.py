"""Defines collectors, which see the corpus while it is counted and give a section of stats.json.

A collector is shown every chunk in order, by one thread at a time. What it finds may depend
neither on how the corpus was cut into chunks nor on the number of threads.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.state import State
from engram_cli.stats.token_chunk import TokenChunk
from engram_cli.stats.totals import Counts


class RowObserver(Protocol):
    """Sees the rows of the first head of an order of a layer, as they are counted."""

    def push_rows(self, rows: NDArray[np.uint32], chunk: TokenChunk) -> None:
        """Take the head-local `rows` uint32[T] of the T tokens of the next `chunk`.

        `rows` is overwritten afterwards.
        """
        ...


class NgramObserver(Protocol):
    """Sees the n-grams of an order by their hashes."""

    def push_ngrams(self, hashes: NDArray[np.uint64], chunk: TokenChunk) -> None:
        """Take the hashes [T] of the n-grams at the T positions of the next `chunk`.

        `hashes` is overwritten afterwards.
        """
        ...


class Collector(Protocol):
    """Sees all that is counted. `name`: its key in stats.json."""

    name: str

    @property
    def memory(self) -> int:
        """The most bytes it takes, known from the start."""
        ...

    def push(self, chunk: TokenChunk) -> None:
        """Take the next chunk, of at most about 2**17 tokens."""
        ...

    def ngram_observer(self, order: int) -> NgramObserver | None:
        """Return the observer of the n-grams of `order`, or None.

        It may be called by another thread than `push`.
        """
        ...

    def row_observer(self, layer: int, order: int) -> RowObserver | None:
        """Return the observer of the rows of `order` (such as 2) in `layer`, or None.

        It may be called by another thread than `push`.
        """
        ...

    def section(self, counts: Counts) -> Any:
        """Return the result as plain JSON values; `counts` are those of the whole corpus."""
        ...

    def state(self) -> State:
        """Return all that `restore` of a new collector needs to continue; it may share memory."""
        ...

    def restore(self, state: State) -> None:
        """Continue from a `state` read from a file. Raises ArtifactError for an unsound one."""
        ...

    def partial(self) -> State:
        """Return what merges with the partials of other parts; reading order changes nothing.

        It may share memory.
        """
        ...

    def absorb(self, state: State) -> None:
        """Merge the `partial` of another part, which may come from a file; nothing is pushed
        afterwards. The order in which parts are absorbed changes nothing.

        Raises ArtifactError for an unsound one, MismatchError for one that does not belong here.
        """
        ...


class BaseCollector:
    """Does nothing; collectors that need only a part of the protocol inherit from it."""

    name = ""

    @property
    def memory(self) -> int:
        """It takes no memory."""
        return 0

    def push(self, chunk: TokenChunk) -> None:
        """Ignore the chunk."""

    def ngram_observer(self, order: int) -> NgramObserver | None:
        """Return None: it needs no observer."""
        return None

    def row_observer(self, layer: int, order: int) -> RowObserver | None:
        """Return None: it needs no observer."""
        return None

    def state(self) -> State:
        """Return an empty state."""
        return {}

    def restore(self, state: State) -> None:
        """Ignore the state."""

    def partial(self) -> State:
        """Return an empty state."""
        return {}

    def absorb(self, state: State) -> None:
        """Ignore the partial."""

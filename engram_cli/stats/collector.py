"""What looks at the corpus while it is counted: chunks and rows in, a section of stats.json out.

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
    """Looks at all that is counted. `name`: its key in stats.json."""

    name: str

    @property
    def memory(self) -> int:
        """The bytes it takes at most, known from the start."""
        ...

    def push(self, chunk: TokenChunk) -> None:
        """Look at the next chunk, of at most about 2**17 tokens."""
        ...

    def ngram_observer(self, order: int) -> NgramObserver | None:
        """Who is to see the n-grams of `order`; None for nobody.

        It may be called by another thread than `push`.
        """
        ...

    def row_observer(self, layer: int, order: int) -> RowObserver | None:
        """Who is to see the rows of `order` (such as 2) in `layer`; None for nobody.

        It may be called by another thread than `push`.
        """
        ...

    def section(self, counts: Counts) -> Any:
        """What was found, as plain JSON values; `counts` are those of the whole corpus."""
        ...

    def state(self) -> State:
        """All that `restore` of a fresh one needs to go on from here; it may share memory."""
        ...

    def restore(self, state: State) -> None:
        """Go on from a `state` that comes from a file. Raises ArtifactError for an unsound one."""
        ...

    def partial(self) -> State:
        """What merges with that of another part of the corpus; the same however this part was read.

        It may share memory.
        """
        ...

    def absorb(self, state: State) -> None:
        """Take in the `partial` of another part, which may come from a file; nothing is pushed
        afterwards. The order in which parts are absorbed changes nothing.

        Raises ArtifactError for an unsound one, MismatchError for one that does not belong here.
        """
        ...


class BaseCollector:
    """A collector that does nothing; those that need only a part of the protocol inherit it."""

    name = ""

    @property
    def memory(self) -> int:
        """None."""
        return 0

    def push(self, chunk: TokenChunk) -> None:
        """Look away."""

    def ngram_observer(self, order: int) -> NgramObserver | None:
        """Nobody."""
        return None

    def row_observer(self, layer: int, order: int) -> RowObserver | None:
        """Nobody."""
        return None

    def state(self) -> State:
        """Nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing was kept."""

    def partial(self) -> State:
        """Nothing."""
        return {}

    def absorb(self, state: State) -> None:
        """Nothing was found."""

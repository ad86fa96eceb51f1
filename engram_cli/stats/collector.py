"""Defines collectors, which see the corpus while it is counted.

A collector is shown every chunk, by one thread at a time, and in order if it asks for that. What it
finds may depend neither on how the corpus was cut into chunks nor on the number of threads. It
leaves a partial. Partials of several parts of a corpus merge, and the partial of the whole gives
the result.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.state import State
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


class CollectorPartial(Protocol):
    """What a collector found in a part of the corpus; parts merge in any order and grouping."""

    def state(self) -> State:
        """Return all of it as named arrays, which may share memory."""
        ...

    def merge(self, other: Any) -> CollectorPartial:
        """Return that of both parts.

        Raises MismatchError for an `other` that was counted in another way.
        """
        ...

    def result(self, counts: Counts) -> Any:
        """Return what stats.json holds under the collector's name, None for nothing.

        `counts` are those of the whole corpus.
        """
        ...


class Collector:
    """Base of all collectors; it ignores what it is shown.

    `name`: of its partial, and the key of its result in stats.json. `ordered`: it must be shown the
    chunks in order; else one thread at a time shows it some chunk, which several cores do faster.
    """

    name = ""
    ordered = True

    @property
    def memory(self) -> int:
        """The most bytes it takes, known from the start."""
        return 0

    def push(self, chunk: TokenChunk) -> None:
        """Take the next chunk, of at most about 2**17 tokens."""

    def ngram_observer(self, order: int) -> NgramObserver | None:
        """Return the observer of the n-grams of `order`, or None.

        It may be called by another thread than `push`.
        """
        return None

    def row_observer(self, layer: int, order: int) -> RowObserver | None:
        """Return the observer of the rows of `order` (such as 2) in `layer`, or None.

        It may be called by another thread than `push`.
        """
        return None

    def state(self) -> State:
        """Return all that `restore` of a new collector needs to continue; it may share memory."""
        return {}

    def restore(self, state: State) -> None:
        """Continue from a `state` read from a file. Raises ArtifactError for an unsound one."""

    def partial(self) -> CollectorPartial:
        """Return what was found, which may share memory; nothing is pushed afterwards."""
        raise NotImplementedError


def first_heads(layout: HashLayout) -> dict[tuple[int, int], int]:
    """Return (layer, order) -> the rows of the first head, which row observers see."""
    return {
        (entry.layer, order): entry.moduli[index * layout.heads]
        for entry in layout.layers
        for index, order in enumerate(layout.orders)
    }

"""Turns token ids that follow each other in a file, and the places of its documents, into blocks.

Files are read in pieces, not mapped: a mapped corpus would count as our memory, and a file that
shrinks while it is read would kill the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import BLOCK_TOKENS, CorpusFile, TokenBlock, cut_names, runs
from engram_cli.corpus.byte_stream import exactly
from engram_cli.errors import CorpusError

Offsets = NDArray[np.int64]


class Documents(Protocol):
    """Where the documents of a file begin, asked for one block after the other."""

    def within(self, ids: NDArray[np.integer], begin: int) -> Offsets:
        """Return int64[D], ascending: where documents begin in the block `ids` at token `begin`."""

    def finish(self) -> None:
        """Raise CorpusError where there should be more blocks."""


class Marked:
    """Documents that a token separates: it ends each ("after") or begins each ("before")."""

    def __init__(self, token: int | None, side: str) -> None:
        """`token` None: the file is one document."""
        self._token = token
        self._after = side == "after"
        self._begins = True  # whether the next token begins a document

    def within(self, ids: NDArray[np.integer], begin: int) -> Offsets:
        """See `Documents`."""
        if self._token is None:
            found = np.zeros(0, np.int64)
        else:
            found = np.flatnonzero(ids == self._token) + (begin + self._after)
        if self._begins and not (len(found) and found[0] == begin):
            found = np.concatenate([[begin], found])
        end = begin + len(ids)
        self._begins = bool(len(found)) and int(found[-1]) == end
        return found[:-1] if self._begins else found

    def finish(self) -> None:
        """See `Documents`; nothing was promised."""


class Listed:
    """Documents whose beginnings a file lists, given in ascending pieces, read as they are met."""

    def __init__(self, pieces: Iterator[Offsets]) -> None:
        self._pieces = pieces
        self._ahead: Offsets = np.zeros(0, np.int64)
        self._more = True

    def within(self, ids: NDArray[np.integer], begin: int) -> Offsets:
        """See `Documents`."""
        return self.below(begin + len(ids))

    def below(self, end: int) -> Offsets:
        """Return the next entries below `end`; all smaller ones were taken before."""
        held = [self._ahead]
        while self._more and (not len(held[-1]) or held[-1][-1] < end):
            piece = next(self._pieces, None)
            self._more = piece is not None
            if piece is not None:
                held.append(piece)
        listed = np.concatenate(held)
        cut = int(np.searchsorted(listed, end))
        self._ahead = listed[cut:]
        return listed[:cut]

    def finish(self) -> None:
        """See `Documents`; the rest of the list is read, which checks it."""
        for _ in self._pieces:
            pass


def stream_blocks(
    file: CorpusFile,
    stream: BinaryIO,
    dtype: np.dtype[np.integer],
    tokens: int,
    documents: Documents,
    *,
    first: int = 0,
    first_document: int = 0,
) -> Iterator[TokenBlock]:
    """Yield the next `tokens` ids of a stream. Raises CorpusError where it ends before.

    `first`: the token of the file that they begin with, that of the document `first_document`.
    """
    number, at = first_document - 1, first  # the document at hand and where it began
    extra = stream.tell() if stream.seekable() and not first else 0
    for begin in range(first, first + tokens, BLOCK_TOKENS):
        count = min(BLOCK_TOKENS, first + tokens - begin)
        ids = np.frombuffer(exactly(stream, count * dtype.itemsize, file.name), dtype)
        begins = documents.within(ids, begin)
        starts = np.zeros(count, dtype=np.bool_)
        starts[begins - begin] = True
        locate = partial(_locate, file.name, "document", number, at, begins, begin)
        yield TokenBlock(ids=ids, starts=starts, size=ids.nbytes + extra, locate=locate)
        extra = 0
        if len(begins):
            number, at = number + len(begins), int(begins[-1])
    documents.finish()


def list_blocks(
    name: str,
    unit: str,
    first: int,
    ids: NDArray[np.integer],
    lengths: NDArray[np.integer] | Sequence[int],
    size: int,
    labels: Sequence[str] | None = None,
) -> Iterator[TokenBlock]:
    """Yield documents that are whole in memory, such as rows or samples, in blocks.

    `lengths`: the ids of each; `first`: the number of the first `unit` in the file. `size`: the
    bytes read for all. `labels`: the label of each.
    """
    begins = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=begins[1:])
    starts = np.zeros(len(ids), dtype=np.bool_)
    starts[begins[:-1][np.asarray(lengths) > 0]] = True
    named = () if labels is None else runs(labels, begins.tolist())
    for begin in range(0, max(len(ids), 1), BLOCK_TOKENS):
        end = min(begin + BLOCK_TOKENS, len(ids))
        yield TokenBlock(
            ids=ids[begin:end],
            starts=starts[begin:end],
            size=0 if begin else size,
            locate=partial(_locate, name, unit, first - 1, 0, begins, begin),
            labels=cut_names(named, begin, end),
        )


def _locate(
    name: str, unit: str, number: int, at: int, begins: NDArray[Any], begin: int, index: int
) -> str:
    """Name the unit and the position of the token `index` of a block that begins at `begin`.

    `begins`: where the units after `number`, which begins at `at`, begin.
    """
    token = begin + index
    passed = int(np.searchsorted(begins, token, side="right"))
    first = int(begins[passed - 1]) if passed else at
    return f"{name}, {unit} {number + passed}, position {token - first}"


def whole_tokens(name: str, size: int, width: int) -> int:
    """Return how many ids of `width` bytes are `size` bytes. Raises CorpusError for a rest."""
    if size % width:
        raise CorpusError(
            f"{name} is truncated: {size:,} bytes are not a whole number of ids of {width} bytes",
            "copy or write the file again, or say what it holds with --format and --ids-dtype",
        )
    return size // width


def integers(stream: BinaryIO, count: int, dtype: str, name: str) -> NDArray[np.integer]:
    """Read the next `count` integers of an index. Raises CorpusError."""
    wanted: np.dtype[np.integer] = np.dtype(dtype)
    return np.frombuffer(exactly(stream, count * wanted.itemsize, name), wanted)

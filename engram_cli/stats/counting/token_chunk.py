"""Cuts token blocks into the chunks and segments that counting works on.

A segment is a document, or 16,384 tokens of a long one. Its key is a 64-bit hash of the file's
identity, the document's number in the file and the segment's number in the document. So a segment
has the same key wherever and whenever it is read. Keys decide which segments are held out, and the
random order in which the growth of a corpus is measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import Names, cut_names
from engram_cli.corpus.stamps import identity
from engram_cli.hashing.hasher import Window
from engram_cli.stats.state import State, scalar, take, take_scalar

SEGMENT_TOKENS = 2**14
_ODD1, _ODD2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_DOCUMENT = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """Holds the S segments of T tokens: `begins` int64[S] ascending from 0, `keys` uint64[S].

    The first one may have begun earlier: `carried` of its tokens come before.
    """

    begins: NDArray[np.int64]
    keys: NDArray[np.uint64]
    carried: int = 0

    def part(self, begin: int, end: int) -> Segments:
        """Return the segments of the tokens begin..end-1."""
        first = int(np.searchsorted(self.begins, begin, side="right")) - 1
        last = int(np.searchsorted(self.begins, end, side="left"))
        return Segments(
            begins=np.maximum(self.begins[first:last] - begin, 0),
            keys=self.keys[first:last],
            carried=begin - int(self.begins[first]) + (0 if first else self.carried),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenChunk:
    """Holds T tokens of the corpus, which follow those of the previous chunk.

    `window`: compressed, as they are hashed; `ids`: as they were read; `starts` bool[T]: first
    tokens of documents; `files`: (index, name) where a file's tokens begin, the first at 0;
    `labels`: the same for the labels of documents, () where there are none; `position`: how many
    tokens of the partition were counted before, 0 only where one begins.
    """

    window: Window
    ids: NDArray[np.integer]
    starts: NDArray[np.bool_]
    segments: Segments
    files: Names
    position: int
    labels: Names = ()

    def __len__(self) -> int:
        return len(self.window)

    def part(self, begin: int, end: int) -> TokenChunk:
        """Return the tokens begin..end-1, without a copy."""
        if (begin, end) == (0, len(self)):
            return self
        return TokenChunk(
            window=self.window.part(begin, end),
            ids=self.ids[begin:end],
            starts=self.starts[begin:end],
            segments=self.segments.part(begin, end),
            files=cut_names(self.files, begin, end),
            position=self.position + begin,
            labels=cut_names(self.labels, begin, end),
        )


class SegmentSplitter:
    """Divides a stream of blocks into segments; block boundaries change nothing."""

    def __init__(self, segment: int = SEGMENT_TOKENS) -> None:
        self._segment_tokens = segment
        self._file: str | None = None
        self._key = np.uint64(0)
        self._documents = 0  # of the current file so far
        self._position = 0  # in the current document

    def push(self, starts: NDArray[np.bool_], files: Sequence[tuple[int, str]]) -> Segments:
        """Return the segments of the next T tokens, T above 0."""
        parts = []
        same = bool(files) and files[0][1] == self._file and not starts[0]
        carried = self._position % self._segment_tokens if same else 0
        for (begin, name), (end, _) in zip(files, [*files[1:], (len(starts), "")], strict=True):
            if begin < end:
                parts.append(self._in_file(name, starts[begin:end], begin))
        return Segments(
            begins=np.concatenate([begins for begins, _ in parts]),
            keys=np.concatenate([keys for _, keys in parts]),
            carried=carried,
        )

    def state(self) -> State:
        """Return the current file, and the position in it."""
        name = (self._file or "").encode("utf-8", "surrogatepass")
        return {
            "file": np.frombuffer(name, dtype=np.uint8),
            "key": scalar(int(self._key), np.uint64),
            "begun": scalar(self._file is not None),
            "documents": scalar(self._documents),
            "position": scalar(self._position),
        }

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        raw = take(state, "file", np.uint8, (-1,)).tobytes()
        begun = take_scalar(state, "begun", 0, 1)
        self._file = raw.decode("utf-8", "surrogatepass") if begun else None
        self._key = np.uint64(take_scalar(state, "key", 0, 2**64 - 1))
        self._documents = take_scalar(state, "documents")
        self._position = take_scalar(state, "position")

    def _begin(self, name: str) -> None:
        digest = hashlib.sha256(identity(name)).digest()
        self._file, self._key = name, np.uint64(int.from_bytes(digest[:8], "little"))
        self._documents = self._position = 0

    def _in_file(
        self, name: str, starts: NDArray[np.bool_], at: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        if name != self._file:
            self._begin(name)
        begins = places_of(starts)
        carried = int(not starts[0])  # the first segment continues a document
        if carried:
            begins = np.concatenate([[0], begins])
        numbers = self._documents + np.arange(1 - carried, len(begins) + 1 - carried)
        positions = np.zeros(len(begins), dtype=np.int64)
        if carried:
            positions[0] = self._position
        lengths = np.diff(begins, append=len(starts))
        self._documents = int(numbers[-1])
        self._position = int(positions[-1] + lengths[-1])
        first = positions // self._segment_tokens
        pieces = (positions + lengths - 1) // self._segment_tokens - first + 1
        which = np.repeat(np.arange(len(begins)), pieces)
        piece = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[which]
        offset = np.maximum(piece * self._segment_tokens - positions[which], 0)
        documents = scrambled(self._key ^ (numbers.astype(np.uint64) * _DOCUMENT))
        keys = scrambled(documents[which] + piece.astype(np.uint64))
        return at + begins[which] + offset, keys


def places_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return where bool[T] is true, ascending: 8 at a time, for few are."""
    whole = len(mask) & ~7
    eights = np.flatnonzero(np.ascontiguousarray(mask[:whole]).view(np.uint64))
    places = (8 * eights[:, None] + np.arange(8)).reshape(-1)
    return np.concatenate([places[mask[places]], whole + np.flatnonzero(mask[whole:])])


def scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 of each value: a bijection that looks random."""
    values = (values ^ (values >> np.uint64(30))) * _ODD1
    values = (values ^ (values >> np.uint64(27))) * _ODD2
    return values ^ (values >> np.uint64(31))

"""Megatron's pair of files: .bin holds token ids, .idx the sequences and the documents of them.

.idx: magic, u64 version 1, u8 type of the ids, u64 sequences S, u64 entries D; int32[S] lengths,
int64[S] byte offsets, int64[D] the first sequence of each document and S at last, maybe int8[S].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Reader, TokenBlock
from engram_cli.corpus.byte_stream import basename, exactly, length_of, opened, sibling_file
from engram_cli.corpus.flat import Listed, Offsets, blocks, integers, never_text, whole_tokens
from engram_cli.corpus.partitions import by_search
from engram_cli.corpus.sources import MEGATRON_MAGIC
from engram_cli.errors import CorpusError

_ENTRIES = 2**16  # read at a time
_HEADER = len(MEGATRON_MAGIC) + 8 + 1 + 8 + 8
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HINT = "copy or write both files again"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    file: CorpusFile
    dtype: np.dtype[np.integer]
    sequences: int
    entries: int
    stream: BinaryIO

    def lengths(self, first: int, count: int) -> NDArray[np.int64]:
        """The ids of the sequences from `first` on."""
        return self._integers(_HEADER + 4 * first, count, "<i4")

    def pointers(self, first: int, count: int) -> NDArray[np.int64]:
        """The byte offsets of the sequences from `first` on."""
        return self._integers(_HEADER + 4 * self.sequences + 8 * first, count, "<i8")

    def firsts(self, first: int, count: int) -> NDArray[np.int64]:
        """The first sequences of the documents from `first` on."""
        return self._integers(_HEADER + 12 * self.sequences + 8 * first, count, "<i8")

    def place(self, document: int) -> int | None:
        """The byte of the .bin where a document begins, None after its last sequence."""
        sequence = int(self.firsts(document, 1)[0])
        if not 0 <= sequence <= self.sequences:
            raise self.wrong(f"document {document} begins with sequence {sequence}")
        return int(self.pointers(sequence, 1)[0]) if sequence < self.sequences else None

    def _integers(self, at: int, count: int, dtype: str) -> NDArray[np.int64]:
        self.stream.seek(at)
        return integers(self.stream, count, dtype, self.file.name).astype(np.int64)

    def wrong(self, what: str) -> CorpusError:
        return CorpusError(f"{self.file.name} is damaged: {what}", _HINT)


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """The ids of a .bin, its documents as the .idx has them. Raises CorpusError."""
    index_file = sibling_file(file, _index_name(file))
    with opened(file) as stream, opened(index_file) as entries:
        index = _header(index_file, entries)
        size = length_of(file, stream)
        tokens = whole_tokens(file.name, size, index.dtype.itemsize)
        part = _part(file, index, tokens)
        stream.seek(part.first * index.dtype.itemsize)
        yield from blocks(
            file,
            stream,
            index.dtype,
            part.last - part.first,
            Listed(_begins(index, part, file.name)),
            first=part.first,
            first_document=part.documents[0],
        )


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """The file in sections of whole documents."""
    index_file = sibling_file(file, _index_name(file))
    with opened(index_file) as entries:
        index = _header(index_file, entries)

        def place(document: int) -> int:
            return index.place(document) or 0

        return by_search(file, max(index.entries - 1, 0), place, size)


def companions(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    """The .idx."""
    return (sibling_file(file, _index_name(file)),)


def _index_name(file: CorpusFile) -> str:
    return f"{basename(file).removesuffix('.bin')}.idx"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What is to be read: entries of documents, sequences, and tokens first..last-1."""

    documents: tuple[int, int]
    sequences: tuple[int, int]
    first: int
    last: int
    whole: bool


def _part(file: CorpusFile, index: _Index, tokens: int) -> _Part:
    """All of the file, or its section. Raises CorpusError."""
    section = file.section
    if section is None:
        everything = (0, index.sequences)
        return _Part(
            documents=(0, index.entries), sequences=everything, first=0, last=tokens, whole=True
        )
    if section.end >= index.entries:
        raise CorpusError(f"{file.name} has changed: {index.entries:,} documents", "run it again")
    begin, end = (int(index.firsts(at, 1)[0]) for at in (section.begin, section.end))
    first, last = (index.place(at) for at in (section.begin, section.end))
    width = index.dtype.itemsize
    last = tokens * width if last is None else last
    if first is None or not 0 <= begin <= end <= index.sequences or not 0 <= first <= last:
        raise index.wrong("its documents do not ascend from 0 to the last sequence")
    if last > tokens * width:
        raise CorpusError(f"{file.name} is truncated: the index has more ids", _HINT)
    return _Part(
        documents=(section.begin, section.end),
        sequences=(begin, end),
        first=first // width,
        last=last // width,
        whole=False,
    )


def _header(file: CorpusFile, stream: BinaryIO) -> _Index:
    size = length_of(file, stream)
    raw = exactly(stream, _HEADER, file.name)
    if not raw.startswith(MEGATRON_MAGIC):
        raise CorpusError(
            f"{file.name} is not a Megatron index",
            "copy it again, or say what the .bin next to it is with --format",
        )
    rest = raw[len(MEGATRON_MAGIC) :]
    version, code = int.from_bytes(rest[:8], "little"), rest[8]
    sequences, entries = (int.from_bytes(rest[at : at + 8], "little") for at in (9, 17))
    if version != 1:
        raise CorpusError(f"{file.name} is of version {version}", "write a Megatron index of 1")
    if code not in _DTYPES:
        raise CorpusError(f"{file.name} has ids of type {code}, no integers", "write token ids")
    index = _Index(
        file=file,
        dtype=np.dtype(_DTYPES[code]),
        sequences=sequences,
        entries=entries,
        stream=stream,
    )
    wanted = _HEADER + 12 * sequences + 8 * entries
    if size not in (wanted, wanted + sequences):
        raise index.wrong(
            f"{size:,} bytes, its header of {sequences:,} sequences and {entries:,} documents "
            f"promises {wanted:,}"
        )
    return index


def _begins(index: _Index, part: _Part, name: str) -> Iterator[Offsets]:
    """The first tokens of the documents; every entry of the index is checked on the way."""
    documents = _Firsts(index, part)
    at, tokens = part.first, part.last
    for first in range(*part.sequences, _ENTRIES):
        count = min(_ENTRIES, part.sequences[1] - first)
        lengths, pointers = index.lengths(first, count), index.pointers(first, count)
        if bool(np.any(lengths < 0)):
            raise index.wrong(f"sequence {first + int(np.argmax(lengths < 0))} has less than 0 ids")
        ends = np.cumsum(lengths) + at
        begins = np.concatenate([[at], ends[:-1]])
        # Both sides in int64: offsets of at most 2**31 * 2**16 ids a piece do not overflow.
        differ = pointers != begins * index.dtype.itemsize
        if bool(np.any(differ)):
            raise index.wrong(
                f"sequence {first + int(np.argmax(differ))} is not where it should be"
            )
        at = int(ends[-1])
        if at > tokens:
            raise CorpusError(f"{name} is truncated: the index has more than {tokens:,} ids", _HINT)
        yield begins[documents.below(first + count) - first]
    documents.finish()
    if at != tokens:
        raise CorpusError(f"{name} has {tokens:,} ids, its index {at:,}", _HINT)


class _Firsts:
    """The first sequences of the documents, in pieces."""

    def __init__(self, index: _Index, part: _Part) -> None:
        self._index = index
        self._whole = part.whole
        self._taken, self._end = part.documents
        self._last = self._first = part.sequences[0]
        self._begin = self._taken
        self._ahead: NDArray[np.int64] = np.zeros(0, np.int64)

    def below(self, end: int) -> NDArray[np.int64]:
        """The next entries below `end`; all smaller ones were taken before."""
        held = [self._ahead]
        while self._taken < self._end and (not len(held[-1]) or held[-1][-1] < end):
            held.append(self._next())
        found = np.concatenate(held)
        cut = int(np.searchsorted(found, end))
        self._ahead = found[cut:]
        return found[:cut]

    def finish(self) -> None:
        """What is left must say that the sequences are over."""
        self.below(self._index.sequences + 1)
        if self._whole and self._last != self._index.sequences:
            raise self._index.wrong("its documents do not cover the sequences")

    def _next(self) -> NDArray[np.int64]:
        begin = self._taken == self._begin
        found = self._index.firsts(self._taken, min(_ENTRIES, self._end - self._taken))
        self._taken += len(found)
        ascending = bool(np.all(found[1:] >= found[:-1])) and int(found[0]) >= self._last
        if (
            not ascending
            or (begin and found[0] != self._first)
            or found[-1] > self._index.sequences
        ):
            raise self._index.wrong("its documents do not ascend from 0 to the last sequence")
        self._last = int(found[-1])
        return found


READER = Reader(read=read, gives_text=never_text, divide=divide, companions=companions)

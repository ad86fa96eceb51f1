"""Reads Megatron's pair of files: .bin holds token ids, .idx the sequences and their documents.

.idx: magic, u64 version 1, u8 type of the ids, u64 sequences S, u64 entries D; int32[S] lengths,
int64[S] byte offsets, int64[D] the first sequence of each document and S at last, maybe int8[S].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import (
    CorpusFile,
    CorpusOptions,
    Look,
    Reader,
    Signs,
    TokenBlock,
    never_text,
)
from engram_cli.corpus.byte_stream import basename, exactly, length_of, opened, sibling_file
from engram_cli.corpus.flat import Listed, Offsets, integers, stream_blocks, whole_tokens
from engram_cli.corpus.partitions import by_search
from engram_cli.errors import CorpusError

_MAGIC = b"MMIDIDX\x00\x00"
_ENTRIES = 2**16  # read at a time
_HEADER = len(_MAGIC) + 8 + 1 + 8 + 8
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HINT = "copy or write both files again"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """An opened .idx; `entries` of documents, the last of which is the end of the sequences."""

    file: CorpusFile
    dtype: np.dtype[np.integer]
    sequences: int
    entries: int
    stream: BinaryIO

    def lengths(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the number of ids of the sequences from `first` on."""
        return self._integers(_HEADER + 4 * first, count, "<i4")

    def pointers(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the byte offsets of the sequences from `first` on."""
        return self._integers(_HEADER + 4 * self.sequences + 8 * first, count, "<i8")

    def firsts(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the first sequences of the documents from `first` on."""
        return self._integers(_HEADER + 12 * self.sequences + 8 * first, count, "<i8")

    def place(self, document: int) -> int | None:
        """Return the byte of the .bin where a document begins, None after its last sequence."""
        sequence = int(self.firsts(document, 1)[0])
        if not 0 <= sequence <= self.sequences:
            raise self.wrong(f"document {document} begins with sequence {sequence}")
        return int(self.pointers(sequence, 1)[0]) if sequence < self.sequences else None

    def _integers(self, at: int, count: int, dtype: str) -> NDArray[np.int64]:
        self.stream.seek(at)
        return integers(self.stream, count, dtype, self.file.name).astype(np.int64)

    def wrong(self, what: str) -> CorpusError:
        return CorpusError(f"{self.file.name} is damaged: {what}", _HINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What is to be read: entries of documents, sequences, and tokens."""

    documents: range
    sequences: range
    tokens: range
    whole: bool


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """Yield the ids of a .bin, its documents as the .idx has them. Raises CorpusError."""
    (index_file,) = companions(file, options)
    with opened(file) as stream, opened(index_file) as entries:
        index = _header(index_file, entries)
        tokens = whole_tokens(file.name, length_of(file, stream), index.dtype.itemsize)
        part = _part(file, index, tokens)
        stream.seek(part.tokens.start * index.dtype.itemsize)
        yield from stream_blocks(
            file,
            stream,
            index.dtype,
            len(part.tokens),
            Listed(_begins(index, part, file.name)),
            first=part.tokens.start,
            first_document=part.documents.start,
        )


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """Divide the file into sections of whole documents."""
    (index_file,) = companions(file, options)
    with opened(index_file) as entries:
        index = _header(index_file, entries)

        def place(document: int) -> int:
            return index.place(document) or 0

        return by_search(file, max(index.entries - 1, 0), place, size)


def companions(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    """Return the .idx."""
    return (sibling_file(file, f"{basename(file).removesuffix('.bin')}.idx"),)


def recognises(look: Look) -> bool:
    """Return whether a .bin file has an index next to it."""
    if look.head.startswith(_MAGIC):
        raise CorpusError(
            f"{look.name} is the index of a file that is not there", "copy the .bin too"
        )
    return look.ending == ".bin" and look.storage.kind(look.name[: -len("bin")] + "idx") == "file"


def _part(file: CorpusFile, index: _Index, tokens: int) -> _Part:
    """Return all of the file, or its section. Raises CorpusError."""
    if file.section is None:
        return _Part(
            documents=range(index.entries),
            sequences=range(index.sequences),
            tokens=range(tokens),
            whole=True,
        )
    documents = file.units(max(index.entries - 1, 0), "documents")
    bounds = (documents.start, documents.stop)
    begin, end = (int(index.firsts(at, 1)[0]) for at in bounds)
    first, last = (index.place(at) for at in bounds)
    width = index.dtype.itemsize
    last = tokens * width if last is None else last
    if first is None or not 0 <= begin <= end <= index.sequences or not 0 <= first <= last:
        raise index.wrong("its documents do not ascend from 0 to the last sequence")
    if last > tokens * width:
        raise CorpusError(f"{file.name} is truncated: the index has more ids", _HINT)
    return _Part(
        documents=documents,
        sequences=range(begin, end),
        tokens=range(first // width, last // width),
        whole=False,
    )


def _header(file: CorpusFile, stream: BinaryIO) -> _Index:
    size = length_of(file, stream)
    raw = exactly(stream, _HEADER, file.name)
    if not raw.startswith(_MAGIC):
        raise CorpusError(
            f"{file.name} is not a Megatron index",
            "copy it again, or say what the .bin next to it is with --format",
        )
    rest = raw[len(_MAGIC) :]
    version, code = int.from_bytes(rest[:8], "little"), rest[8]
    sequences, entries = (int.from_bytes(rest[at : at + 8], "little") for at in (9, 17))
    if version != 1:
        raise CorpusError(f"{file.name} is of version {version}", "write a Megatron index of 1")
    if code not in _DTYPES:
        raise CorpusError(f"{file.name} has ids of type {code}, no integers", "write token ids")
    dtype = np.dtype(_DTYPES[code])
    index = _Index(file=file, dtype=dtype, sequences=sequences, entries=entries, stream=stream)
    wanted = _HEADER + 12 * sequences + 8 * entries
    if size not in (wanted, wanted + sequences):
        raise index.wrong(
            f"{size:,} bytes, its header of {sequences:,} sequences and {entries:,} documents "
            f"promises {wanted:,}"
        )
    return index


def _begins(index: _Index, part: _Part, name: str) -> Iterator[Offsets]:
    """Yield the first tokens of the documents; every entry of the index is checked on the way."""
    firsts = Listed(_first_sequences(index, part))
    at, tokens = part.tokens.start, part.tokens.stop
    for first in part.sequences[::_ENTRIES]:
        count = min(_ENTRIES, part.sequences.stop - first)
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
        yield begins[firsts.below(first + count) - first]
    firsts.finish()
    if at != tokens:
        raise CorpusError(f"{name} has {tokens:,} ids, its index {at:,}", _HINT)


def _first_sequences(index: _Index, part: _Part) -> Iterator[NDArray[np.int64]]:
    """Yield the first sequences of the documents in pieces, checked to ascend to the last."""
    last = part.sequences.start
    for number in part.documents[::_ENTRIES]:
        found = index.firsts(number, min(_ENTRIES, part.documents.stop - number))
        begins_elsewhere = number == part.documents.start and int(found[0]) != last
        ascending = bool(np.all(found[1:] >= found[:-1])) and int(found[0]) >= last
        if not ascending or begins_elsewhere or int(found[-1]) > index.sequences:
            raise index.wrong("its documents do not ascend from 0 to the last sequence")
        last = int(found[-1])
        yield found
    if part.whole and last != index.sequences:
        raise index.wrong("its documents do not cover the sequences")


READER = Reader(
    read=read,
    gives_text=never_text,
    divide=divide,
    companions=companions,
    signs=Signs(shared=(".bin",), bare=True, indexes={".idx": ".bin"}, recognises=recognises),
)

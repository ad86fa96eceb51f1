"""Reads the .ds files of datatrove: token ids, and in .ds.index where each document ends.

The index is of uint64, counted in tokens; the width of an id is the file's size by the last end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Reader, TokenBlock
from engram_cli.corpus.byte_stream import basename, length_of, opened, sibling_file
from engram_cli.corpus.flat import Listed, Offsets, blocks, integers, never_text
from engram_cli.corpus.partitions import by_search
from engram_cli.errors import CorpusError

_ENDS = 2**16  # read at a time
_WIDTHS = {2: "<u2", 4: "<u4"}


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """The ids of a file, its documents as the index has them. Raises CorpusError."""
    index = _index(file)
    with opened(file) as stream, opened(index) as ends:
        size, documents = length_of(file, stream), _count(index, ends)
        tokens = _tokens(index, ends, documents)
        dtype = _dtype(file, size, tokens, options.ids_dtype)
        begin, end = _section(file, documents)
        first, last = (_end(index, ends, at) for at in (begin, end))
        if not first <= last <= tokens:
            raise CorpusError(f"{index.name}: the ends do not ascend", "copy the index again")
        stream.seek(first * dtype.itemsize)
        ends.seek(8 * begin)
        listed = Listed(_begins(index, ends, (begin, end), first, last))
        yield from blocks(
            file, stream, dtype, last - first, listed, first=first, first_document=begin
        )


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """The file in sections of whole documents."""
    index = _index(file)
    with opened(file) as stream, opened(index) as ends:
        documents = _count(index, ends)
        tokens = _tokens(index, ends, documents)
        width = _dtype(file, length_of(file, stream), tokens, options.ids_dtype).itemsize

        def place(document: int) -> int:
            return width * _end(index, ends, document)

        return by_search(file, documents, place, size)


def _section(file: CorpusFile, documents: int) -> tuple[int, int]:
    """The first document to read, and the one after the last. Raises CorpusError."""
    if file.section is None:
        return 0, documents
    if file.section.end > documents:
        raise CorpusError(f"{file.name} has changed: {documents:,} documents", "run it again")
    return file.section.begin, file.section.end


def _end(index: CorpusFile, ends: BinaryIO, document: int) -> int:
    """Where the document before this one ends."""
    if not document:
        return 0
    ends.seek(8 * (document - 1))
    return int(integers(ends, 1, "<u8", index.name)[0])


def companions(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    """The .ds.index."""
    return (_index(file),)


def _index(file: CorpusFile) -> CorpusFile:
    return sibling_file(file, f"{basename(file)}.index")


def _count(index: CorpusFile, ends: BinaryIO) -> int:
    size = length_of(index, ends)
    if size % 8:
        raise CorpusError(f"{index.name} is truncated: {size:,} bytes", "copy the index again")
    return size // 8


def _tokens(index: CorpusFile, ends: BinaryIO, documents: int) -> int:
    """The last end."""
    if not documents:
        return 0
    ends.seek(-8, io.SEEK_END)
    tokens = int(integers(ends, 1, "<u8", index.name)[0])
    ends.seek(0)
    return tokens


def _dtype(file: CorpusFile, size: int, tokens: int, wanted: str | None) -> np.dtype[np.integer]:
    width = size // tokens if tokens else 2
    if width not in _WIDTHS or width * tokens != size:
        raise CorpusError(
            f"{file.name} has {size:,} bytes and its index {tokens:,} tokens: that is neither 2 "
            "nor 4 bytes a token",
            "copy both files again",
        )
    if wanted is not None and np.dtype(wanted).itemsize != width:
        raise CorpusError(
            f"{file.name} has {width} bytes a token, no {wanted}", "copy both files again"
        )
    return np.dtype(_WIDTHS[width])


def _begins(
    index: CorpusFile, ends: BinaryIO, documents: tuple[int, int], first: int, tokens: int
) -> Iterator[Offsets]:
    """Where documents begin: where the one before ended; `tokens` is the last end."""
    last = first
    for number in range(*documents, _ENDS):
        found = integers(ends, min(_ENDS, documents[1] - number), "<u8", index.name)
        # Compared before they are signed: an end of 2**63 would turn negative.
        if (
            int(found.max()) > tokens
            or int(found[0]) < last
            or bool(np.any(found[1:] < found[:-1]))
        ):
            raise CorpusError(
                f"{index.name}: the ends of documents {number} to {number + len(found) - 1} do not "
                "ascend to the last",
                "copy or write the index again",
            )
        begins = np.concatenate([[last], found[:-1].astype(np.int64)])
        last = int(found[-1])
        yield begins


READER = Reader(
    read=read, gives_text=never_text, divide=divide, companions=companions, uses=("ids_dtype",)
)

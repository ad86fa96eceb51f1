"""Reads the .ds files of datatrove: token ids, and in .ds.index where each document ends.

The index is of uint64, counted in tokens; the width of an id is the file's size by the last end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Reader, Signs, TokenBlock, never_text
from engram_cli.corpus.byte_stream import basename, length_of, opened, sibling_file
from engram_cli.corpus.flat import Listed, Offsets, integers, stream_blocks
from engram_cli.corpus.partitions import by_search
from engram_cli.errors import CorpusError

_ENDS = 2**16  # read at a time
_WIDTHS = {2: "<u2", 4: "<u4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """An opened index of `documents` ends; the last one says how many `tokens` there are."""

    name: str
    stream: BinaryIO
    documents: int
    tokens: int
    dtype: np.dtype[np.integer]

    def begin(self, document: int) -> int:
        """Return the token where a document begins: the end of the one before."""
        if not document:
            return 0
        self.stream.seek(8 * (document - 1))
        return int(integers(self.stream, 1, "<u8", self.name)[0])

    def begins(self, documents: range, first: int) -> Iterator[Offsets]:
        """Yield where documents begin; the first of them begins at token `first`."""
        self.stream.seek(8 * documents.start)
        for number in documents[::_ENDS]:
            count = min(_ENDS, documents.stop - number)
            ends = integers(self.stream, count, "<u8", self.name)
            # Compared before they are signed: an end of 2**63 would turn negative.
            descends = bool(np.any(ends[1:] < ends[:-1])) or int(ends[0]) < first
            if descends or int(ends.max()) > self.tokens:
                raise CorpusError(
                    f"{self.name}: the ends of documents {number} to {number + count - 1} do not "
                    "ascend to the last",
                    "copy or write the index again",
                )
            begins = np.concatenate([[first], ends[:-1].astype(np.int64)])
            first = int(ends[-1])
            yield begins


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """Yield the ids of a file, its documents as the index has them. Raises CorpusError."""
    with _opened(file, options) as (stream, index):
        documents = file.units(index.documents, "documents")
        first, last = index.begin(documents.start), index.begin(documents.stop)
        if not first <= last <= index.tokens:
            raise CorpusError(f"{index.name}: the ends do not ascend", "copy the index again")
        stream.seek(first * index.dtype.itemsize)
        yield from stream_blocks(
            file,
            stream,
            index.dtype,
            last - first,
            Listed(index.begins(documents, first)),
            first=first,
            first_document=documents.start,
        )


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """Divide the file into sections of whole documents."""
    with _opened(file, options) as (_, index):

        def place(document: int) -> int:
            return index.dtype.itemsize * index.begin(document)

        return by_search(file, index.documents, place, size)


def companions(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    """Return the .ds.index."""
    return (sibling_file(file, f"{basename(file)}.index"),)


@contextmanager
def _opened(file: CorpusFile, options: CorpusOptions) -> Iterator[tuple[BinaryIO, _Index]]:
    """Open a file and its index, whose last end is checked. Raises CorpusError."""
    (about,) = companions(file, options)
    with opened(file) as stream, opened(about) as ends:
        size, index_size = length_of(file, stream), length_of(about, ends)
        if index_size % 8:
            raise CorpusError(
                f"{about.name} is truncated: {index_size:,} bytes", "copy the index again"
            )
        tokens = 0
        if index_size:
            ends.seek(-8, io.SEEK_END)
            tokens = int(integers(ends, 1, "<u8", about.name)[0])
        width = size // tokens if tokens else 2
        if width not in _WIDTHS or width * tokens != size:
            raise CorpusError(
                f"{file.name} has {size:,} bytes and its index {tokens:,} tokens: that is neither "
                "2 nor 4 bytes a token",
                "copy both files again",
            )
        wanted = options.ids_dtype
        if wanted is not None and np.dtype(wanted).itemsize != width:
            raise CorpusError(
                f"{file.name} has {width} bytes a token, no {wanted}", "copy both files again"
            )
        yield (
            stream,
            _Index(
                name=about.name,
                stream=ends,
                documents=index_size // 8,
                tokens=tokens,
                dtype=np.dtype(_WIDTHS[width]),
            ),
        )


READER = Reader(
    read=read,
    gives_text=never_text,
    divide=divide,
    companions=companions,
    uses=("ids_dtype",),
    signs=Signs(
        suffixes=(".ds",),
        bare=True,
        indexes={".ds.index": ".ds", ".ds.loss": ".ds", ".ds.metadata": ".ds"},
    ),
)

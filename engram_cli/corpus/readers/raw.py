"""Bare token ids without a header: the .bin of nanoGPT, the .npy of OLMo. Nothing says their width.

uint16, unless the first ids read so would all have an upper neighbour of at most 3: then they are
uint32, of a vocabulary of less than 2**18.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Reader, TokenBlock
from engram_cli.corpus.byte_stream import length_of, opened
from engram_cli.corpus.flat import Marked, blocks, never_text, whole_tokens

_LOOKED_AT = 2**16  # bytes
_MOST_UPPER = 3


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """The ids of a file; `document_end_id` ends a document, else there is one. CorpusError."""
    with opened(file) as stream:
        size = length_of(file, stream)
        dtype = _dtype(stream, size, options)
        tokens = whole_tokens(file.name, size, dtype.itemsize)
        yield from blocks(file, stream, dtype, tokens, Marked(options.document_end_id, "after"))


def remark(file: CorpusFile, options: CorpusOptions) -> str | None:
    """What was assumed of a file that says nothing."""
    with opened(file) as stream:
        dtype = _dtype(stream, length_of(file, stream), options)
    told = f"{file.format} files of {dtype.name} ids"
    if options.document_end_id is None:
        return f"{told}: each is one document (--document-end-id parts them)"
    return f"{told}: token {options.document_end_id} ends a document"


def _dtype(stream: BinaryIO, size: int, options: CorpusOptions) -> np.dtype[np.integer]:
    if options.ids_dtype is not None:
        return np.dtype(options.ids_dtype).newbyteorder("<")
    head = stream.read(_LOOKED_AT)
    stream.seek(0)
    halves = np.frombuffer(head[: len(head) // 4 * 4], "<u2")
    wide = size % 4 == 0 and size > 0 and int(halves[1::2].max()) <= _MOST_UPPER
    return np.dtype("<u4" if wide else "<u2")


_USES = ("document_end_id", "ids_dtype")
NANOGPT = Reader(read=read, gives_text=never_text, remark=remark, uses=_USES)
OLMO = Reader(read=read, gives_text=never_text, remark=remark, uses=_USES)

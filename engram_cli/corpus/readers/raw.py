"""Reads bare token ids without a header: the .bin of nanoGPT, the .npy of OLMo.

Nothing in a file says how wide its ids are. They are uint16, unless the first ids read so would all
have an upper neighbour of at most 3: then they are uint32, of a vocabulary of less than 2**18.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from engram_cli.corpus.base import (
    CorpusFile,
    CorpusOptions,
    Look,
    Reader,
    Signs,
    TokenBlock,
    never_text,
)
from engram_cli.corpus.byte_stream import length_of, opened
from engram_cli.corpus.flat import Marked, stream_blocks, whole_tokens

_LOOKED_AT = 2**16  # bytes
_MOST_UPPER = 3
_NPY_MAGIC = b"\x93NUMPY"


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """Yield the ids of a file; `document_end_id` ends a document. Raises CorpusError."""
    with opened(file) as stream:
        size = length_of(file, stream)
        dtype = _dtype(stream, size, options)
        tokens = whole_tokens(file.name, size, dtype.itemsize)
        documents = Marked(options.document_end_id, "after")
        yield from stream_blocks(file, stream, dtype, tokens, documents)


def remark(file: CorpusFile, options: CorpusOptions) -> str | None:
    """Return what was assumed of a file that says nothing."""
    with opened(file) as stream:
        dtype = _dtype(stream, length_of(file, stream), options)
    described = f"{file.format} files of {dtype.name} ids"
    if options.document_end_id is None:
        return f"{described}: each is one document (--document-end-id separates them)"
    return f"{described}: token {options.document_end_id} ends a document"


def _dtype(stream: BinaryIO, size: int, options: CorpusOptions) -> np.dtype[np.integer]:
    if options.ids_dtype is not None:
        return np.dtype(options.ids_dtype).newbyteorder("<")
    head = stream.read(_LOOKED_AT)
    stream.seek(0)
    halves = np.frombuffer(head[: len(head) // 4 * 4], "<u2")
    wide = size % 4 == 0 and size > 0 and int(halves[1::2].max()) <= _MOST_UPPER
    return np.dtype("<u4" if wide else "<u2")


def _may_be_bare(look: Look) -> bool:
    """Return whether a .npy file without NumPy's header may be bare token ids."""
    if look.ending != ".npy":
        return False
    size = look.storage.file(look.name, "olmo").size
    whole = size is None or (size > 0 and size % 2 == 0)
    return whole and not _NPY_MAGIC.startswith(look.head[:6])


def _reader(signs: Signs) -> Reader:
    uses = ("document_end_id", "ids_dtype")
    return Reader(read=read, gives_text=never_text, remark=remark, uses=uses, signs=signs)


# Any file may be called .bin: in folders such a file is read only when the format is given.
NANOGPT = _reader(Signs(suffixes=(".bin",), unsearched=(".bin",), shared=(".bin",), bare=True))
OLMO = _reader(Signs(shared=(".npy",), bare=True, recognises=_may_be_bare))

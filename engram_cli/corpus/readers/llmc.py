"""The .bin of llm.c and modded-nanogpt: 256 int32 of header, then token ids.

Header: [0] 20240520 and [1] version 1 for uint16 ids, 20240801 and version 7 for uint32, as in
llm.c's data_common.py; [2] how many ids. The end-of-text token stands before each document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Reader, TokenBlock
from engram_cli.corpus.byte_stream import exactly, length_of, opened
from engram_cli.corpus.flat import Marked, blocks, never_text
from engram_cli.corpus.sources import LLMC_MAGIC
from engram_cli.errors import CorpusError

_HEADER = 1024  # bytes
_VERSIONS = {"uint16": 1, "uint32": 7}  # GPT-2's ids, Llama 3's


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """The ids of a file; `document_end_id` begins a document, else there is one. CorpusError."""
    with opened(file) as stream:
        dtype, tokens = _header(file, stream)
        yield from blocks(file, stream, dtype, tokens, Marked(options.document_end_id, "before"))


def remark(file: CorpusFile, options: CorpusOptions) -> str:
    """Where documents begin."""
    if options.document_end_id is None:
        return "llmc files: each is one document (--document-end-id parts them)"
    return f"llmc files: token {options.document_end_id} begins a document"


def _header(file: CorpusFile, stream: BinaryIO) -> tuple[np.dtype[np.integer], int]:
    size = length_of(file, stream)
    raw = exactly(stream, _HEADER, file.name)
    if raw[:4] not in LLMC_MAGIC:
        raise CorpusError(f"{file.name} does not begin like an llm.c file", "try --format nanogpt")
    kind = LLMC_MAGIC[raw[:4]]
    dtype: np.dtype[np.integer] = np.dtype(kind).newbyteorder("<")
    version, tokens = np.frombuffer(raw, "<i4")[1:3].tolist()
    if version != _VERSIONS[kind]:
        raise CorpusError(
            f"{file.name} is of version {version} of llm.c's format for {kind} ids",
            f"write version {_VERSIONS[kind]}",
        )
    wanted = _HEADER + tokens * dtype.itemsize
    if tokens < 0 or size != wanted:
        raise CorpusError(
            f"{file.name} is damaged: {size:,} bytes, its header of {tokens:,} tokens promises "
            f"{max(wanted, 0):,}",
            "copy or write the file again",
        )
    return dtype, tokens


READER = Reader(read=read, gives_text=never_text, remark=remark, uses=("document_end_id",))

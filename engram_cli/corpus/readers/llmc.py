"""Reads the .bin of llm.c and modded-nanogpt: 256 int32 of header, then token ids.

Header: [0] 20240520 and [1] version 1 for uint16 ids, 20240801 and version 7 for uint32, as in
llm.c's data_common.py; [2] how many ids. The end-of-text token stands before each document.
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
from engram_cli.corpus.byte_stream import exactly, length_of, opened
from engram_cli.corpus.flat import Marked, stream_blocks
from engram_cli.errors import CorpusError

_HEADER = 1024  # bytes
_MAGIC = {
    (20240520).to_bytes(4, "little"): "uint16",
    (20240801).to_bytes(4, "little"): "uint32",
}
_EVALUATION = (20240522).to_bytes(4, "little")
_VERSIONS = {"uint16": 1, "uint32": 7}  # GPT-2's ids, Llama 3's


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """Yield the ids of a file; `document_end_id` begins a document. Raises CorpusError."""
    with opened(file) as stream:
        dtype, tokens = _header(file, stream)
        documents = Marked(options.document_end_id, "before")
        yield from stream_blocks(file, stream, dtype, tokens, documents)


def remark(file: CorpusFile, options: CorpusOptions) -> str:
    """Return where documents begin."""
    if options.document_end_id is None:
        return "llmc files: each is one document (--document-end-id separates them)"
    return f"llmc files: token {options.document_end_id} begins a document"


def _header(file: CorpusFile, stream: BinaryIO) -> tuple[np.dtype[np.integer], int]:
    size = length_of(file, stream)
    raw = exactly(stream, _HEADER, file.name)
    if raw[:4] not in _MAGIC:
        raise CorpusError(f"{file.name} does not begin like an llm.c file", "try --format nanogpt")
    kind = _MAGIC[raw[:4]]
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


def recognises(look: Look) -> bool:
    """Return whether a .bin file has a header of llm.c; refuse its evaluation files."""
    if look.ending == ".bin" and look.head.startswith(_EVALUATION):
        raise CorpusError(f"{look.name} is an llm.c evaluation file", "leave it out")
    return look.ending == ".bin" and look.head[:4] in _MAGIC


READER = Reader(
    read=read,
    gives_text=never_text,
    remark=remark,
    uses=("document_end_id",),
    signs=Signs(shared=(".bin",), bare=True, recognises=recognises),
)

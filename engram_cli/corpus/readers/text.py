"""Text files in UTF-8: a file is a document, or a separator ends each."""

from __future__ import annotations

from collections.abc import Iterator

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Document, Reader
from engram_cli.corpus.byte_stream import open_decompressed
from engram_cli.corpus.text import decoded, split_documents


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Document]:
    """The documents of a text file. Raises CorpusError."""
    separator = options.document_separator
    number = -1
    with open_decompressed(file) as (stream, spent):
        chunks = decoded(stream, file.name, options.errors, spent)
        for text, first, size in split_documents(chunks, separator):
            number += first
            place = "" if separator is None else f"document {number}"
            yield Document(file=file.name, place=place, text=text, first=first, size=size)


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Always."""
    return True


READER = Reader(read=read, gives_text=gives_text, uses=("document_separator", "errors"))

"""Reads text files in UTF-8: a file is a document, or a separator ends each."""

from __future__ import annotations

from collections.abc import Iterator

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Document, Reader, Signs
from engram_cli.corpus.byte_stream import open_decompressed
from engram_cli.corpus.text import decoded, split_documents

_PLAIN = (".txt", ".text", ".md")
_SUFFIXES = (
    *(*_PLAIN, ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm"),
    *(".py", ".pyi", ".pyx", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu"),
    *(".rs", ".go", ".java", ".kt", ".scala", ".cs", ".swift", ".js", ".mjs", ".ts", ".jsx"),
    *(".tsx", ".vue", ".css", ".scss", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".hs"),
    *(".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".f90", ".sql", ".sh", ".bash"),
    *(".zsh", ".ps1", ".bat", ".cmake", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".xml"),
)


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Document]:
    """Yield the documents of a text file. Raises CorpusError."""
    separator = options.document_separator
    number = -1
    with open_decompressed(file) as (stream, spent):
        chunks = decoded(stream, file.name, options.errors, spent)
        for text, first, size in split_documents(chunks, separator):
            number += first
            place = "" if separator is None else f"document {number}"
            yield Document(file=file.name, place=place, text=text, first=first, size=size)


READER = Reader(
    read=read,
    uses=("document_separator", "errors"),
    signs=Signs(suffixes=_SUFFIXES, certain=_PLAIN, streams=True),
)

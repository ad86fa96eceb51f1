"""Reads documents as the table's corpus was read: their tokens, in scratch files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from engram_cli.commands.corpus_tokenizer import tokenizer_of_corpus
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import encode_corpus, vectors_of_table
from engram_cli.commands.requests.corpus import FillRequest
from engram_cli.commands.requests.update import UpdateTableRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.checks import needs_tokenizer
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.errors import MismatchError
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.outputs import remove_work
from engram_cli.progress import Once, Progress
from engram_cli.sizes import available_memory
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.journal import SCRATCH
from engram_cli.table.lock import build_lock
from engram_cli.table.places import scratch_folder
from engram_cli.table.sums.change import DocumentChange
from engram_cli.vocab.parquet import read_about
from engram_cli.vocab.tokenizer import TokenizerFile

_DEFAULT_MEMORY = 2 * 2**30  # where the system does not say what is free


class DocumentReader:
    """Reads documents for the table `path` of `layout`, with one tokenizer for all of them."""

    def __init__(
        self, request: UpdateTableRequest, path: Path, layout: HashLayout, progress: Progress
    ) -> None:
        geometry = Geometry.from_layout(layout)
        if request.document_end_id is None:
            request = replace(request, document_end_id=geometry.eos_id)
        self.request, self.layout = request, layout
        self._path, self._geometry, self._progress = path, geometry, Once(progress)
        self._tokenizer: TokenizerFile | None = None

    def find(self, sources: tuple[str | Path, ...]) -> Sources:
        """Return the files of documents. Raises CorpusError, InputError."""
        return find_sources(sources, self.request.corpus)

    def read(self, sources: Sources, folder: Path) -> TokenFile:
        """Return their tokens in a scratch file in `folder`, written if missing.

        Raises as `encode_corpus`, and MismatchError for the vocabulary of another table.
        """
        if needs_tokenizer(sources.files, self.request.corpus) and self._tokenizer is None:
            workspace = Workspace(self.request.folder)
            vocab = self.request.vocab or workspace.vocab
            self._check_vocabulary(vocab)
            self._tokenizer = tokenizer_of_corpus(
                vocab, self._geometry, workspace, self.request.tokenizer, self._progress
            )
        return encode_corpus(
            self.request, sources, self._tokenizer, self.layout, folder, self._progress
        )

    def _check_vocabulary(self, vocab: Path) -> None:
        wanted = self.layout.vocab_digest
        if wanted is None or not vocab.is_file():
            return
        digest = read_about(vocab).get("vocab_digest")
        if digest != wanted:
            raise MismatchError(
                f"{self._path} was built with vocabulary {short(wanted)}, {vocab} is "
                f"{short(str(digest))}",
                "give the table's vocabulary with --vocab",
            )


def read_change(
    reader: DocumentReader, place: Path, stack: ExitStack, found: tuple[Sources | None, ...]
) -> DocumentChange:
    """Return the documents to add and to remove, in scratch folders next to `place`.

    The folders are locked and, when the block of `stack` ends well, removed.
    """
    files: list[TokenFile | None] = []
    folders = []
    for name, sources in zip(("added", "removed"), found, strict=True):
        folder = scratch_folder(place.with_name(f"{place.name}.{name}"))
        folders.append(folder)
        if sources is None:
            files.append(None)
            continue
        stack.enter_context(build_lock(folder, place))
        files.append(reader.read(sources, folder))
    return DocumentChange(added=files[0], removed=files[1], folders=(folders[0], folders[1]))


def remove_scratch(change: DocumentChange) -> None:
    """Remove the scratch files of documents. Raises OutputError."""
    for file, folder in zip(change.sides, change.folders, strict=True):
        if file is not None:
            remove_work(folder, SCRATCH)


def table_vectors(
    request: UpdateTableRequest, path: Path, layout: HashLayout, init: Mapping[str, Any]
) -> Embeddings:
    """Return the vectors in the rows of a table. Raises InputError, MismatchError."""
    fill = FillRequest(checkpoint=request.checkpoint, workspace=Workspace(request.folder))
    return vectors_of_table(fill, path, str(init["name"]), layout, init["parameters"])


def memory_of_update(request: UpdateTableRequest) -> int:
    """Return the bytes of memory that the update may take."""
    if request.memory is not None:
        return request.memory
    free = available_memory()
    return _DEFAULT_MEMORY if free is None else free // 2

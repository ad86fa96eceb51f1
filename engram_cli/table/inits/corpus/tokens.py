"""The scratch token file: a corpus as raw ids, tokenised once and hashed as often as needed.

It is a file of uint32, the highest bit set on the first token of each document. The JSON file next
to it says how far it is whole, so that an interrupted run resumes there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import ReadPosition, TokenBlock
from engram_cli.corpus.stamps import continues
from engram_cli.errors import ArtifactError, InputError, TokenIdError, UndecodableError
from engram_cli.files import inner_file, output_errors, read_json
from engram_cli.hashing.hasher import first_unknown
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import open_work, remove_work
from engram_cli.progress import SILENT, Progress
from engram_cli.rows.checksum import file_checksum
from engram_cli.table.journal import SCRATCH

FORMAT = "engram-tokens"
START = 2**31  # the bit of a document's first token
TOKENS, STATE = "tokens.u32", "tokens.json"
KEEP_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A finished token file: `digest` is the XXH64 of its bytes, `largest` the largest id.

    `documents_digest`: of its documents in any order, see `documents.documents_digest`.
    """

    path: Path
    tokens: int
    documents: int
    largest: int
    digest: str
    documents_digest: str = ""

    def map(self) -> NDArray[np.uint32]:
        """Map the words, uint32[tokens]."""
        return _mapped(self.path, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Words of a token file, uint32[T], from `size` bytes of the corpus.

    `read_position`: where reading can resume after it, None where it cannot.
    """

    words: NDArray[np.uint32]
    size: int
    read_position: ReadPosition | None = None


def piece_of(block: TokenBlock, layout: HashLayout) -> Piece:
    """Return a block as words. Raises TokenIdError naming file, document and position."""
    at = first_unknown(layout, block.ids)
    if at >= 0:
        raise TokenIdError(
            f"{block.locate(at)} (counted from 0): token id {block.ids[at]} is none of the "
            f"vocabulary of {layout.vocab_size}",
            "was the text tokenised with another tokenizer?",
        )
    words = block.ids.astype("<u4")
    words |= block.starts.astype("<u4") << np.uint32(31)
    return Piece(words=words, size=block.size, read_position=block.read_position)


def split_starts(words: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Return the ids and the document starts of words of a token file."""
    return words & np.uint32(START - 1), words >= np.uint32(START)


class TokenWriter:
    """Writes the token file in `folder`, or continues one of the same `request`."""

    def __init__(self, folder: Path, request: str | None, threads: int = 1) -> None:
        """`request`: a digest of all that decides the ids; None: nothing can be resumed.

        `threads`: that digest the finished file.
        """
        self.folder, self._threads = folder, threads
        self._request = request
        self._reset()
        if request is not None and (folder / STATE).is_file():
            self._take_up()

    @property
    def resumable(self) -> bool:
        """Whether another run can continue this one."""
        return self._request is not None

    def _reset(self) -> None:
        self.finished: TokenFile | None = None
        self.tokens = self.documents = self.size = 0
        self.largest = -1
        self.read_position: ReadPosition | None = None
        self.encoder: str | None = None

    def _take_up(self) -> None:
        try:
            state = read_json(self.folder / STATE, "the state of a token file")
            known = state["format"] == FORMAT and continues(self._request or "", state["request"])
            length = (self.folder / TOKENS).stat().st_size
            counts = [state[name] for name in ("tokens", "documents", "size")]
            if not known or any(type(n) is not int or n < 0 for n in counts):
                return
            if length < 4 * state["tokens"] or type(state["largest"]) is not int:
                return
            read_position = None if state["mark"] is None else ReadPosition.read(state["mark"])
            complete, encoder = state["complete"] is True, state["encoder"]
        except (ArtifactError, InputError, KeyError, TypeError, ValueError, OSError):
            return
        self.tokens, self.documents, self.size = counts
        self.largest, self.read_position, self.encoder = state["largest"], read_position, encoder
        if complete:
            self.finished = self._file()

    def restart(self) -> None:
        """Start over."""
        remove_work(self.folder, SCRATCH)
        self._reset()

    def write(
        self,
        pieces: Generator[Piece, None, None],
        encoder: str | None,
        progress: Progress = SILENT,
    ) -> TokenFile:
        """Append all pieces, saving the state now and then; return the finished file.

        `encoder`: the one that a resumed run must take, None for any. Raises OutputError.
        """
        if self.finished is not None:
            return self.finished
        self.encoder = encoder
        open_work(self.folder, SCRATCH)
        with output_errors(self.folder):
            path = self.folder / TOKENS
            with closing(pieces), path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(4 * self.tokens)
                file.seek(0, os.SEEK_END)
                last = time.monotonic()
                read_position: ReadPosition | None = None
                try:
                    for piece in pieces:
                        self._append(piece, file)
                        progress.advance(piece.size)
                        read_position = piece.read_position
                        if read_position is not None and time.monotonic() - last > KEEP_SECONDS:
                            self._keep(file, read_position, complete=False)
                            last = time.monotonic()
                except UndecodableError:
                    if read_position is not None:
                        self._keep(file, read_position, complete=False)
                    raise
                self._keep(file, None, complete=True)
        self.finished = self._file()
        return self.finished

    def _append(self, piece: Piece, file: Any) -> None:
        self.size += piece.size
        if not len(piece.words):
            return
        ids, starts = split_starts(piece.words)
        file.write(piece.words.data)
        self.tokens += len(ids)
        self.documents += int(np.count_nonzero(starts))
        self.largest = max(self.largest, int(ids.max()))

    def _keep(self, file: Any, read_position: ReadPosition | None, *, complete: bool) -> None:
        file.flush()
        os.fsync(file.fileno())
        state = {
            "format": FORMAT,
            "request": self._request,
            "complete": complete,
            "tokens": self.tokens,
            "documents": self.documents,
            "size": self.size,
            "largest": self.largest,
            "encoder": self.encoder,
            "mark": None if read_position is None else asdict(read_position),
        }
        with inner_file(self.folder / STATE) as part:
            part.write_text(json.dumps(state), encoding="utf-8")

    def _file(self) -> TokenFile:
        from engram_cli.table.inits.corpus.documents import documents_digest

        path = self.folder / TOKENS
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(file_checksum, path)
            documents = documents_digest(_mapped(path, self.tokens), self._threads)
        return TokenFile(
            path=path,
            tokens=self.tokens,
            documents=self.documents,
            largest=self.largest,
            digest=digest.result(),
            documents_digest=documents,
        )


def _mapped(path: Path, tokens: int) -> NDArray[np.uint32]:
    """Map the words of a token file; kernels take only arrays that could be written."""
    if not tokens:
        return np.empty(0, dtype=np.uint32)
    return np.memmap(path, dtype="<u4", mode="c", shape=(tokens,))

"""Cuts documents into windows that fit a model's context, and gathers windows into batches.

Documents arrive in pieces of token ids, so that one of any length takes no more memory than a
window. Each token but a document's first is scored in exactly one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """The next token ids, int[n] with n >= 0, of the document with the number `document`.

    Pieces of one document follow each other. `bytes`: the UTF-8 bytes of the piece's text, None if
    they are not known. `name`: where the document is, to read.
    """

    document: int
    ids: NDArray[np.integer]
    bytes: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """Token ids int64[n] of a document, from its position `start` on; n is at most the context.

    The tokens from `first` (1 or more) to the end are scored here, those before are context.
    """

    document: int
    start: int
    first: int
    ids: NDArray[np.int64]
    name: str = ""

    @property
    def scored(self) -> NDArray[np.int64]:
        """The ids of the tokens that are scored."""
        return self.ids[self.first :]

    @property
    def context(self) -> NDArray[np.int64]:
        """How many tokens the model has seen before each scored one: int64[scored]."""
        return np.arange(self.first, len(self.ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentEnd:
    """Says that all windows of a document came: its `tokens`, and its `bytes` if known."""

    document: int
    tokens: int
    bytes: int | None


def cut_windows(
    pieces: Iterable[Piece], context: int, stride: int
) -> Iterator[Window | DocumentEnd]:
    """Yield the windows of each document, at most `context` tokens long, then its end.

    A window begins `stride` tokens after the one before, so that context - stride tokens of it are
    read again as context. Raises InputError for a context below 2, or a stride that is not 1 to
    context - 1.
    """
    check_window(context, stride)
    held: _Held | None = None
    for piece in pieces:
        if held is None or held.document != piece.document:
            if held is not None:
                yield from held.end()
            held = _Held(piece, context, stride)
        yield from held.take(piece)
    if held is not None:
        yield from held.end()


def check_window(context: int, stride: int) -> None:
    """Raise InputError unless windows of that length and distance score every token."""
    if context < 2:
        raise InputError(f"a context of {context} tokens", "give 2 or more")
    if not 1 <= stride < context:
        raise InputError(
            f"a stride of {stride} tokens in a context of {context}", f"give 1 to {context - 1}"
        )


class _Held:
    """The tokens of the document at hand that are not in a window yet, or are context of one."""

    def __init__(self, first: Piece, context: int, stride: int) -> None:
        self.document, self._name = first.document, first.name
        self._context, self._stride = context, stride
        self._ids = np.empty(0, dtype=np.int64)
        self._start = self._tokens = 0
        self._scored = 1  # position of the first token that no window scores
        self._bytes: int | None = 0

    def take(self, piece: Piece) -> Iterator[Window]:
        """Add a piece; yield the windows that are full."""
        known = self._bytes is not None and piece.bytes is not None
        self._bytes = (self._bytes or 0) + (piece.bytes or 0) if known else None
        self._tokens += len(piece.ids)
        self._ids = np.concatenate((self._ids, piece.ids.astype(np.int64)))
        while len(self._ids) >= self._context:
            yield self._window(self._ids[: self._context])
            self._ids = self._ids[self._stride :]
            self._start += self._stride

    def end(self) -> Iterator[Window | DocumentEnd]:
        """Yield the last window, if a token is left for it, and the end."""
        if self._start + len(self._ids) > self._scored:
            yield self._window(self._ids)
        yield DocumentEnd(document=self.document, tokens=self._tokens, bytes=self._bytes)

    def _window(self, ids: NDArray[np.int64]) -> Window:
        first = self._scored - self._start
        self._scored = self._start + len(ids)
        return Window(
            document=self.document,
            start=self._start,
            first=first,
            ids=ids.copy(),
            name=self._name,
        )


def batches(windows: Iterable[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Yield all windows in batches of similar lengths, the longest first.

    A batch, padded to its longest window, has at most `batch_tokens` tokens, unless one window
    alone has more.
    """
    batch: list[Window] = []
    for window in sorted(windows, key=lambda own: (-len(own.ids), own.document, own.start)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch

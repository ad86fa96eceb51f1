"""Defines how work reports its progress; the command line draws it, other callers ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener to one piece of work after another."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Begin a piece of work of `total` "bytes", "tokens" or "rows", None if not known.

        `unit` is "" where nothing is counted.
        """

    def advance(self, amount: int) -> None:
        """Count `amount` more units as done."""

    def note(self, text: str) -> None:
        """Report what was chosen, what it will cost, or what was fallen back to."""


class Silent:
    """A listener that ignores everything."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Ignore it."""

    def advance(self, amount: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


SILENT = Silent()


class WithoutNotes:
    """Passes work on to another listener, and drops what is said about it."""

    def __init__(self, listener: Progress) -> None:
        self.start, self.advance = listener.start, listener.advance

    def note(self, text: str) -> None:
        """Drop it."""


class Once:
    """Passes everything on to another listener, and a note only the first time."""

    def __init__(self, listener: Progress) -> None:
        self.start, self.advance = listener.start, listener.advance
        self._note = listener.note
        self._said: set[str] = set()

    def note(self, text: str) -> None:
        """Pass a note on unless it was passed on before."""
        if text not in self._said:
            self._said.add(text)
            self._note(text)

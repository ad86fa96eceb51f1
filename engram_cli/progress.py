"""How long work says where it is; the command line draws it, everyone else ignores it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener to one piece of work after another."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """A new piece of work begins: `total` units of "bytes", "tokens" or "rows", if known; ""
        where nothing is counted."""

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""

    def note(self, text: str) -> None:
        """A line worth reading: what was chosen, what it will cost, what was fallen back to."""


class Silent:
    """The listener that hears nothing."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Hear nothing."""

    def advance(self, amount: int) -> None:
        """Hear nothing."""

    def note(self, text: str) -> None:
        """Hear nothing."""


SILENT = Silent()


class Once:
    """Passes everything on to another listener, and a note only the first time."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self._said: set[str] = set()

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Pass it on."""
        self._listener.start(what, total, unit)

    def advance(self, amount: int) -> None:
        """Pass it on."""
        self._listener.advance(amount)

    def note(self, text: str) -> None:
        """Pass it on unless it was said before."""
        if text not in self._said:
            self._said.add(text)
            self._listener.note(text)

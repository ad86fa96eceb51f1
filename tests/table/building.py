"""Builds that stop: by Ctrl-C, or by errors of the disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engram_cli.table import fill


class Interrupting:
    """A listener that presses Ctrl-C, or only counts."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.total = 0
        self.done = 0

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.total = total or 0

    def advance(self, amount: int) -> None:
        self.done += amount
        if self.after is not None and self.done >= self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        raise AssertionError(text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_after(monkeypatch: pytest.MonkeyPatch, chunks: int, code: int) -> None:
    """Let `chunks` chunks be written, then answer every write with the error `code`."""
    written = iter(range(chunks))
    write = fill._write_all

    def refuse(handle: int, data: np.ndarray) -> None:
        if next(written, None) is None:
            raise OSError(code, os.strerror(code))
        write(handle, data)

    monkeypatch.setattr(fill, "_write_all", refuse)

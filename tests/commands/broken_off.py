"""Runs of hash-stats that are broken off, and what they are told."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, HashStatsResult, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.stats.counting import checkpoint

GEOMETRY = Geometry(heads=2, rows_per_head=(211,), layers=(1, 5), pad_id=2)

GOING_ON = "going on from a checkpoint"


class Heard:
    """Remembers what it was told; breaks off after some bytes, by Ctrl-C as often as said, or by an
    exception that cannot be put off."""

    def __init__(self, stop_after: int | None = None, ctrl_c: int = 0) -> None:
        self.notes: list[str] = []
        self.done = 0
        self._stop_after = stop_after
        self._ctrl_c = ctrl_c

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount
        if self._stop_after is not None and self.done > self._stop_after:
            if not self._ctrl_c:
                raise KeyboardInterrupt
            self._stop_after = None
            for _ in range(self._ctrl_c):
                signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def said(self, text: str) -> bool:
        """Whether exactly one note begins so."""
        return sum(note.startswith(text) for note in self.notes) == 1


def run(here: Path, progress: Heard | None = None, **options: Any) -> HashStatsResult:
    defaults: dict[str, Any] = {
        "geometry": GEOMETRY,
        "workspace": Workspace(here),
        "sources": (here / "corpus",),
        "checkpoint_seconds": 0.0,
    }
    return hash_stats(HashStatsRequest(**defaults | options), progress or Heard())


def size_of(here: Path) -> int:
    return sum(path.stat().st_size for path in (here / "corpus").iterdir())


def broken_off(here: Path, **options: Any) -> Heard:
    """Break off in the middle; there is a checkpoint then."""
    heard = Heard(stop_after=size_of(here) // 2)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard, **options)
    assert not (here / "engram-stats").exists()
    assert (here / ".engram-stats.resume" / checkpoint.DOCUMENT).is_file()
    return heard


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}

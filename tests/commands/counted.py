"""Running hash-stats in tests: a small workspace, and what it is told on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, HashStatsResult, hash_stats
from engram_cli.commands.workspace import Workspace

GEOMETRY = Geometry(heads=2, rows_per_head=(211,), layers=(1, 5), pad_id=2)


class Heard:
    """Remembers the progress it was told."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.done = 0
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.totals.append(total)
        self.done = 0
        assert unit == "bytes"

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(here: Path, progress: Heard | None = None, **options: Any) -> HashStatsResult:
    defaults = {"geometry": GEOMETRY, "workspace": Workspace(here), "sources": (here / "corpus",)}
    return hash_stats(HashStatsRequest(**defaults | options), progress or Heard())

"""Kills hash-stats at random steps and moments until it is through: run as a script with a folder.

Each run is a forked child that ends itself with SIGKILL at a step, a step being what changes the
disk below the folder, or after a time; the next one goes on with what it left. It prints how often
that happened, and whether the statistics are the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from scripts import dies

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus import flat, stream
from engram_cli.corpus import text as corpus_text
from engram_cli.stats.sampling import text_ngrams

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
OPTIONS: dict[str, Any] = {
    "geometry": Geometry(heads=2, rows_per_head=(211,), layers=(1, 5), pad_id=2),
    "sample_size": 64,
    "exact": True,
    "compare_uncompressed": True,
    "group_by": "file",
    "holdout": 0.2,
}


class Notes:
    """Writes what it is told to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Hear nothing."""

    def advance(self, amount: int) -> None:
        """Hear nothing."""

    def note(self, text: str) -> None:
        """Keep a line, whatever happens next."""
        with self._path.open("a") as out:
            out.write(text + "\n")


def main(folder: Path, seed: int) -> None:
    """Print what came of it."""
    draw = random.Random(seed)
    assert not died(folder, "whole", seconds=30.0)
    killed = 0
    while died(folder, "out", step=draw.randrange(4, 70), after=draw.choice([None, draw.random()])):
        killed += 1
    notes = (folder / "out.notes").read_text().splitlines()
    left = sorted(path.name for path in folder.glob(".out.resume*"))
    found = {
        "killed": killed,
        "resumed": sum(note.startswith("going on from a checkpoint") for note in notes),
        "dropped": [note for note in notes if "dropped" in note],
        "equal": contents(folder / "out") == contents(folder / "whole"),
        "left": left,
    }
    print(json.dumps(found))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def died(
    folder: Path,
    name: str,
    *,
    seconds: float = 0.0,
    step: int | None = None,
    after: float | None = None,
) -> bool:
    """Count in a child that kills itself at a step or after a time; whether it came to that."""

    def work() -> None:
        if step is not None:
            kill_at(step, str(folder / f".{name}"))
        if after is not None:
            kill = threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
        count(folder, name, seconds)

    return dies(work, "counting")


def count(folder: Path, name: str, seconds: float) -> None:
    """Run hash-stats in small batches and blocks."""
    stream._FIRST_BATCH = stream._FULL_BATCH = 600
    stream.BLOCK_TOKENS = flat.BLOCK_TOKENS = 100
    corpus_text.PIECE = 500
    text_ngrams._FIRST_SLOTS, text_ngrams._BLOCK = 2**8, 2**6
    request = HashStatsRequest(
        sources=(folder / "corpus",),
        workspace=Workspace(folder),
        out=folder / name,
        checkpoint_seconds=seconds,
        force=True,
        **OPTIONS,
    )
    hash_stats(request, Notes(folder / f"{name}.notes"))


def kill_at(step: int, begin: str) -> None:
    """Send SIGKILL to this process at its `step`-th step at a path that begins so, or flush."""
    left = [step]
    fsync = os.fsync

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: Any) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(begin):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        tick()

    def counted_fsync(handle: int) -> None:
        tick()
        fsync(handle)

    os.fsync = counted_fsync
    sys.addaudithook(hook)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

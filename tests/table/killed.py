"""Kills builds at every step: run as a script with a folder, it prints what it found as JSON.

Each build runs in a forked child that ends itself with SIGKILL at its n-th step, a step being what
changes the disk: a file opened for writing, a write, a flush, a rename, a removal. The next child
goes on with what the one before it left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from scripts import dies
from table.tables import build

from engram_cli.errors import IncompleteError, InputError
from engram_cli.table import fill
from engram_cli.table.store import open_table

TABLE = {"tokens": 5, "chunk_rows": 106}
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def main(folder: Path) -> None:
    """Print how many builds were killed, and every state that a reader found afterwards."""
    expected = build(folder / "whole.zarr", **TABLE).digest
    out = folder / "t.zarr"
    states = [*anew(out, expected), *onwards(out, expected), *replacing(out, expected)]
    print(json.dumps({"killed": len(states), "states": sorted(set(states))}))


def anew(out: Path, expected: str) -> Iterator[str]:
    """Kill a new build at every other of its steps; the same command then finishes it."""
    for step in count(1, 2):
        clear(out)
        if not died(out, step):
            return
        yield state(out, expected)
        if state(out, expected) != "whole":
            build(out, **TABLE)
            assert state(out, expected) == "whole"


def onwards(out: Path, expected: str) -> Iterator[str]:
    """Kill one build again and again, each time some steps further, until it is finished."""
    clear(out)
    for step in count(20, 8):
        if state(out, expected) == "whole" or not died(out, step):
            break
        yield state(out, expected)
    assert state(out, expected) == "whole"


def replacing(out: Path, expected: str) -> Iterator[str]:
    """Kill the replacement of a table of another seed, which is there until the new one is."""
    old = out.with_name("old.zarr")
    other = build(old, **TABLE, seed=1).digest
    for step in count(2, 5):
        clear(out)
        shutil.copytree(old, out)
        if not died(out, step, force=True):
            return
        found = state(out, expected)
        yield "old" if found == "another" and open_table(out).digest == other else found
        build(out, **TABLE, force=True)
        assert state(out, expected) == "whole"


def clear(out: Path) -> None:
    """Remove the table, the half-built one, the lock."""
    for path in out.parent.glob(f"{out.name}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def state(out: Path, expected: str) -> str:
    """What a reader finds at `out`."""
    try:
        digest = open_table(out).digest
    except (IncompleteError, InputError) as error:
        return type(error).__name__
    return "whole" if digest == expected else "another"


def died(out: Path, step: int, *, force: bool = False) -> bool:
    """Build in a child that kills itself at `step`; whether it came to that."""

    def work() -> None:
        kill_at(step, out.parent)
        build(out, **TABLE, force=force, threads=2)

    return dies(work, f"a build to step {step}")


def kill_at(step: int, folder: Path) -> None:
    """Send SIGKILL to this process at its `step`-th step below `folder`."""
    left = [step]
    write, fsync = fill._write_all, os.fsync

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: Any) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        tick()

    def torn_write(handle: int, data: Any) -> None:
        half = len(data) // 2
        write(handle, data[:half])
        tick()
        write(handle, data[half:])

    def counted_fsync(handle: int) -> None:
        tick()
        fsync(handle)

    fill._write_all, os.fsync = torn_write, counted_fsync
    sys.addaudithook(hook)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

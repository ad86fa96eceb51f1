"""Kills updates at random steps: run as a script with a folder, it prints what it found as JSON.

A step is a write: of a slot, of records, of rows, of a note that a bucket is done, and every file
that is opened for writing, renamed or removed. The process ends itself by SIGKILL in the middle of
the step: half of the bytes are written. The same update then completes the table, in the bytes of a
build from the other corpus.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scripts import dies
from table.tables import mapped_layout
from table.updated import built, content, documents, prepared

from engram_cli.errors import IncompleteError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.table.store import open_table
from engram_cli.table.sums import journal, rows

CASES = 20
HOW: dict[str, Any] = {"dtype": "fp8_e8m0", "dim": 32, "chunk_rows": 53}


def main(folder: Path, cases: int) -> None:
    """Print the states in which killed updates left the table, and how many were killed."""
    layout = mapped_layout()
    texts = documents(layout.vocab_size, 24, 1)
    stay, gone, new = texts[:15], texts[15:20], texts[20:24]
    states, killed = [], 0
    digests = {}
    for centre in ("corpus", "vocabulary"):
        for name, part in (("old", [*stay, *gone]), ("new", [*stay, *new])):
            out = folder / f"{name}-{centre}.zarr"
            digests[name, centre] = built(out, layout, part, centre=centre, **HOW)
    for case in range(cases):
        chance = random.Random(case)
        centre = chance.choice(["corpus", "vocabulary"])
        table, other = folder / "t.zarr", folder / f"new-{centre}.zarr"
        shutil.rmtree(table, ignore_errors=True)
        shutil.copytree(folder / f"old-{centre}.zarr", table)
        before, after = digests["old", centre], digests["new", centre]
        step = chance.randrange(1, 110)
        while died(table, new, gone, step, threads=1 + case % 2):
            killed += 1
            states.append(state(table, before, after))
            if states[-1] == "new" and not (table / "sums" / "update.json").exists():
                break  # killed after the last step
            step = chance.randrange(1, 110)
        states.append(state(table, before, after))
        assert states[-1] == "new", states
        assert content(table) == content(other)
    print(json.dumps({"killed": killed, "states": sorted(set(states))}))


def state(path: Path, before: str, after: str) -> str:
    """What a reader finds: the old table or the new one, whole, or one that does not load."""
    try:
        digest = open_table(path).digest
    except IncompleteError:
        return "half-updated"
    assert verify_table(path).ok
    return {before: "old", after: "new"}[digest]


def died(path: Path, new: Any, gone: Any, step: int, threads: int) -> bool:
    """Update in a child that kills itself at `step`; whether it came to that."""

    def work() -> None:
        kill_at(step, path)
        try:
            update = prepared(path, new, gone, threads=threads)
        except StopIteration:  # the table was complete, and only the journal was left
            return
        if update.table.interrupted is None:
            update.check()
        update.apply()

    return dies(work, f"an update to step {step}")


def kill_at(step: int, path: Path) -> None:
    """Have this process kill itself in the middle of the n-th step in the table."""
    left = step

    def last() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def halved(original: Any, where: int) -> Any:
        """Do the first half of a write of lines, and half of the next line."""

        def write(*given: Any) -> None:
            if not last():
                return original(*given)
            arguments = list(given)
            lines, values = np.asarray(given[where]), given[where + 1]
            half = len(lines) // 2
            arguments[where : where + 2] = [lines[:half].copy(), values[:half].copy()]
            original(*arguments)
            target, first = given[0], given[1]
            width = values.shape[1] // 2
            target[first + lines[half], :width] = values[half, :width]
            die()
            return None

        return write

    def torn(handle: int, data: Any, at: int) -> int:
        if last():
            write_at(handle, data[: len(data) // 2], at)
            die()
        return write_at(handle, data, at)

    def event(name: str, given: tuple[Any, ...]) -> None:
        if name in ("os.rename", "os.remove", "open") and str(given[0]).startswith(str(path)):
            written = name != "open" or (given[1] is not None and set(str(given[1])) & set("wax"))
            if written and last():
                die()

    write_at = journal._write_at
    journal._write_at = torn
    rows.kernels.store_lines = halved(rows.kernels.store_lines, 2)  # of records, and of rows
    noted = journal.UpdateJournal.note

    def note(self: journal.UpdateJournal, number: int) -> None:
        if last():
            die()
        noted(self, number)

    journal.UpdateJournal.note = note  # type: ignore[method-assign]
    sys.addaudithook(event)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else CASES)

"""Kills apply and undo at every step: run as a script with a folder, it prints what it found.

    PYTHONPATH=tests python tests/patching/killed.py FOLDER table|bundle [EVERY]

Each runs in a forked child that ends itself with SIGKILL at its n-th step, for n = 1, 1 + EVERY,
... until it ends by itself. A step is what changes the disk: a file opened for writing, a row
written, a flush, a rename, a removal. After each kill the artifact has the rows from before or
those of the patch, or it does not load; then the same command finishes what was begun, or undo
takes it back, to the byte.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from patching.patched import artifact, contents, opened, patch_of

from engram_cli.commands.patch.in_place import apply_in_place, undo_in_place
from engram_cli.commands.patch.journal import read_journal
from engram_cli.errors import IncompleteError

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
DTYPE = "int8_b32"  # rows and scales


def main(folder: Path, kind: str, every: int) -> None:
    """Kill applying and undoing, of a first and of a second patch; print the states."""
    base, other = folder / "base", folder / "other"
    path = artifact(base / "a", kind, DTYPE)
    before = contents(base)
    one = patch_of(opened(path), description="one")
    two = patch_of(opened(path), {0: [5, 40], 3: [7]}, 1, description="two")
    shutil.copytree(base, other)
    apply_in_place(other / "a", one)
    after = contents(other)
    shutil.copytree(other, folder / "both")
    apply_in_place(folder / "both" / "a", two)
    both = contents(folder / "both")
    work = folder / "work" / "a"
    states: Counter[str] = Counter()
    apply_one = lambda: apply_in_place(work, one)  # noqa: E731
    apply_two = lambda: apply_in_place(work, two, any_base=True)  # noqa: E731
    undo = lambda: undo_in_place(work)  # noqa: E731
    for start, run, old, new in (
        (base, apply_one, before, after),
        (other, apply_two, after, both),
        (other, undo, after, before),
        (folder / "both", undo, both, after),
    ):
        states += killed(start, work, run, run, old, new, goal=new, every=every)
        if run is not undo:
            states += killed(start, work, run, undo, old, new, goal=old, every=every)
    print(json.dumps(states))


def killed(
    start: Path,
    work: Path,
    run: Callable[[], object],
    again: Callable[[], object],
    old: dict[str, bytes],
    new: dict[str, bytes],
    *,
    goal: dict[str, bytes],
    every: int,
) -> Counter[str]:
    """Kill `run` at each step; then `again` reaches the `goal`."""
    states: Counter[str] = Counter()
    for step in count(1, every):
        shutil.rmtree(work.parent, ignore_errors=True)
        shutil.copytree(start, work.parent)
        if not died(run, work, step):
            return states
        state = state_of(work, old, new)
        states[state] += 1
        if read_journal(work).pending is None and goal == (old if state == "old" else new):
            continue  # nothing was begun, or all is done but for what the next run clears away
        try:
            again()
        except Exception as error:
            raise SystemExit(f"step {step}, {state}: {type(error).__name__}: {error}") from error
        found = contents(work.parent)
        if found != goal:
            names = [
                name for name in found.keys() | goal.keys() if found.get(name) != goal.get(name)
            ]
            raise SystemExit(f"step {step}, {state}: other files {sorted(names)}")
    raise AssertionError


def state_of(work: Path, old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """What a reader finds: the old or the new artifact, or none that loads."""
    try:
        opened(work)
    except IncompleteError:
        return "half-patched"
    found = {name: raw for name, raw in contents(work.parent).items() if _is_own(name)}
    for name, whole in (("old", old), ("new", new)):
        if found == {own: raw for own, raw in whole.items() if _is_own(own)}:
            return name
    raise SystemExit("an artifact loads that is neither old nor new")


def _is_own(name: str) -> bool:
    """Whether it is a file of the artifact; a .part is one that was being written."""
    return name.startswith("a/") and not name.endswith(".part")


def died(run: Callable[[], object], work: Path, step: int) -> bool:
    """Run in a child that is killed at a step; False if it ended before."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left, fsync, pwrite = [step], os.fsync, os.pwrite

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: Any) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(str(work.parent)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        tick()

    def counted_fsync(handle: int) -> None:
        tick()
        fsync(handle)

    def counted_pwrite(*arguments: Any) -> int:
        tick()
        return pwrite(*arguments)

    os.fsync, os.pwrite = counted_fsync, counted_pwrite
    sys.addaudithook(hook)
    run()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)

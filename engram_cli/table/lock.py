"""One writer at a time: a lock file next to an output, with the pid and the host of its owner.

The lock is the kernel's (flock), so it ends with its process, however that ends. The text of the
file is for people, and for file systems that several machines share without sharing locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engram_cli.errors import OutputError
from engram_cli.files import output_errors
from engram_cli.temporary import (
    ForeignError,
    HeldError,
    VanishedError,
    drop_mark,
    make_mark,
    take_mark,
    write_mark,
)

FORMAT = "engram-lock"


@contextmanager
def build_lock(place: Path, output: Path | None = None) -> Iterator[None]:
    """Hold the lock of `place` for the block; `output`: what is being made, if not `place`.

    The lock of a process that is gone is taken over; that of another host cannot be judged, so it
    holds. Raises OutputError naming the owner when it is held, and for a file of that name that is
    no lock, such as a link.
    """
    path = lock_path(place)
    with output_errors(output or place):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(output or place, path)
        write_mark(handle, FORMAT, {})
    try:
        yield
    finally:
        drop_mark(handle, path)


def clear_lock(place: Path) -> None:
    """Remove the lock of `place` when its owner is gone."""
    if os.path.lexists(lock_path(place)):
        with suppress(OutputError), build_lock(place):
            pass


def lock_path(place: Path) -> Path:
    """Return the path of the lock of an output or a folder of unfinished work."""
    return place.with_name(f"{place.name}.lock")


def _acquire(output: Path, path: Path) -> int:
    while True:
        try:
            with suppress(FileNotFoundError, VanishedError):  # there is none, or its owner is done
                return take_mark(path, FORMAT)[0]
            with suppress(FileExistsError, VanishedError):  # another process was quicker
                return make_mark(path)
        except HeldError as held:
            owner = held.owner
            raise OutputError(
                f"{output} is being built by process {owner.get('pid')} on {owner.get('host')}",
                f"wait for it; if that build is gone, remove {path}",
            ) from None
        except ForeignError:
            raise OutputError(
                f"{path} is in the way: it is not a lock written by engram", "move it away"
            ) from None

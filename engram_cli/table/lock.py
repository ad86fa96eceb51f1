"""One writer at a time: a lock file next to an output, with the pid and the host of its owner.

The lock is the kernel's (flock), so it ends with its process, however that ends. What the file says
is for people, and for file systems that several machines share without sharing locks.
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
    """Hold the lock of `place` for the block. Raises OutputError naming the owner when it is held;
    `output`: what is being made, where that is not `place`.

    The lock of a process that is gone is taken over; another host's cannot be judged, so it holds.
    What has the name of the lock and is none, such as a link, is an OutputError too.
    """
    path = lock_path(place)
    with output_errors(path):
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
    """Where the lock of an output or a folder of unfinished work lies."""
    return place.with_name(f"{place.name}.lock")


def _acquire(output: Path, path: Path) -> int:
    while True:
        try:
            return take_mark(path, FORMAT)[0]
        except (FileNotFoundError, VanishedError):  # there is none, or its owner is done
            pass
        except HeldError as held:
            raise _held(output, path, held) from None
        except ForeignError:
            raise OutputError(
                f"{path} is in the way: it is no lock of engram's", "move it away"
            ) from None
        try:
            return make_mark(path)
        except (FileExistsError, VanishedError):
            continue  # another one was quicker
        except HeldError as held:
            raise _held(output, path, held) from None


def _held(output: Path, path: Path, held: HeldError) -> OutputError:
    owner = held.owner
    return OutputError(
        f"{output} is being built by process {owner.get('pid')} on {owner.get('host')}",
        f"wait for it; if that build is gone, remove {path}",
    )

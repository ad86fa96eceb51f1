"""Temporary folders next to an output: what is being written, and what was replaced, until it goes.

A temporary folder has a random name and holds a mark (`engram_cli.marks`), made first and locked as
long as its process lives. The next run for the same output removes what a killed one left, and
touches nothing that only has such a name.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engram_cli.marks import (
    ForeignError,
    HeldError,
    VanishedError,
    drop_mark,
    make_mark,
    take_mark,
    write_mark,
)
from engram_cli.renaming import rename_new

MARK, FORMAT = "owner.json", "engram-temporary"
CONTENT, OLD, TRASH = "content", "old", "trash"
_NAME = re.compile(r"\.engram-[0-9a-f]{32}\.part")
_TRIES = 10


class Temporary:
    """A temporary folder: `content` grows in it, and `old` holds what steps aside for a moment."""

    def __init__(self, home: Path, mark: int) -> None:
        self._home, self._mark = home, mark
        self.content, self.old = home / CONTENT, home / OLD
        self._made = _made(self.content)

    def discard(self, path: Path) -> None:
        """Remove `content` or `old`, which was judged; what a kill leaves of it, the next run."""
        os.rename(path, self._home / TRASH)
        _remove(self._home / TRASH)

    def close(self) -> None:
        """Remove the folder, and all in it that was made here or discarded."""
        _sweep(self._home, self._mark, self._made, lambda _: False)


@contextmanager
def temporary(path: Path, *, folder: bool) -> Iterator[Temporary]:
    """A new temporary folder for the output `path`, whose `content` is an empty file or folder."""
    made = _make(path, folder)
    try:
        yield made
    finally:
        made.close()


def make_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Make the folder `path` with what `write` puts into it, in one step.

    Raises FileExistsError when something is there.
    """
    with temporary(path, folder=True) as new:
        write(new.content)
        rename_new(new.content, path)


def discard(path: Path, may_go: Callable[[Path], bool]) -> bool:
    """Remove the folder `path` if it may go, judged where no other process looks for it.

    Its name is free at once, however long the rest takes. False when it stays.
    """
    with temporary(path, folder=True) as aside:
        os.rename(path, aside.old)
        if may_go(aside.old):
            aside.discard(aside.old)
            return True
        rename_new(aside.old, path)
        return False


def clear_leftovers(path: Path, may_go: Callable[[Path], bool]) -> None:
    """Remove what killed runs left next to `path`. `may_go` judges what they had displaced; where
    nothing has the name `path`, that gets its name back."""
    try:
        homes = [each for each in os.scandir(path.parent) if _NAME.fullmatch(each.name)]
    except OSError:
        return
    for home in homes:
        if home.is_dir(follow_symlinks=False):
            with suppress(OSError, HeldError, ForeignError, VanishedError):
                _clear(Path(home.path), path, may_go)


def _make(path: Path, folder: bool) -> Temporary:
    for _ in range(_TRIES):
        home = path.parent / f".engram-{secrets.token_hex(16)}.part"
        os.mkdir(home, 0o700)
        try:
            mark = make_mark(home / MARK)
        except (FileNotFoundError, VanishedError, HeldError):
            continue  # another run took the empty folder for a leftover
        content = home / CONTENT
        try:
            if folder:
                os.mkdir(content)
            else:
                os.close(os.open(content, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            write_mark(mark, FORMAT, {"of": path.name, "made": _made(content)})
        except BaseException:
            _sweep(home, mark, _made(content), lambda _: False)
            raise
        return Temporary(home, mark)
    raise FileNotFoundError(f"temporary folders vanish from {path.parent}")


def _clear(home: Path, path: Path, may_go: Callable[[Path], bool]) -> None:
    try:
        mark, said = take_mark(home / MARK, FORMAT)
    except FileNotFoundError:
        os.rmdir(home)  # killed before it had a mark: only an empty folder goes
        return
    if not said:  # killed before the mark said anything, so that nothing was written yet
        _sweep(home, mark, _empty(home / CONTENT), lambda _: False)
        return
    if said.get("of") != path.name:
        os.close(mark)
        return

    def settled(displaced: Path) -> bool:
        if displaced.name == OLD and not os.path.lexists(path):
            rename_new(displaced, path)
            return False
        return may_go(displaced)

    _sweep(home, mark, said.get("made"), settled)


def _sweep(home: Path, mark: int, made: Any, may_go: Callable[[Path], bool]) -> None:
    """Empty a temporary folder and remove it; what is unknown, or may not go, stays in it."""
    with suppress(OSError):
        _remove(home / TRASH)
        for place in (home / CONTENT, home / OLD):
            found = _made(place)
            if found is None:
                continue
            if place.name != CONTENT or found != made:
                if not may_go(place):
                    continue
                os.rename(place, home / TRASH)
                place = home / TRASH
            _remove(place)
    if set(os.listdir(home)) <= {MARK}:
        drop_mark(mark, home / MARK)
        with suppress(OSError):
            os.rmdir(home)
    else:
        os.close(mark)


def _made(path: Path) -> int | None:
    """What tells a file or folder from others of its disk, None where there is none."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _empty(path: Path) -> int | None:
    """`_made` of an empty file or folder, None of anything else."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return None if os.listdir(path) else _made(path)
        return None if os.path.getsize(path) else _made(path)
    return None


def _remove(path: Path) -> None:
    """Remove a file or a folder with all in it, follow no link."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)

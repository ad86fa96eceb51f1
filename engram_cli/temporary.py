"""Temporary folders next to an output: what is being written, and what was replaced, until it goes.

A temporary folder has a random name and holds a mark, made first and locked as long as its process
lives. The next run for the same output removes what a killed one left, and touches nothing that
only has such a name.

A mark is a small file that says which process owns something. The owner holds a lock (flock) on it,
which the kernel drops when the process ends, however it ends. The text of the mark serves people,
and file systems that know no locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engram_cli.files import is_at, parse_json, rename_new

MARK, FORMAT = "owner.json", "engram-temporary"
CONTENT, OLD, TRASH = "content", "old", "trash"
_NAME = re.compile(r"\.engram-[0-9a-f]{32}\.part")
_TRIES = 10
_MOST = 4096  # bytes of a mark
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL))


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
    """Give a temporary folder for the output `path`; its `content` is an empty file or folder."""
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
    """Return what tells a file or folder from others of its disk, None where there is none."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _empty(path: Path) -> int | None:
    """Return `_made` of an empty file or folder, None for anything else."""
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


class HeldError(Exception):
    """The owner of a mark lives, or cannot be judged from here; `owner` is what the mark says."""

    def __init__(self, owner: Mapping[str, Any]) -> None:
        super().__init__("held")
        self.owner = owner


class ForeignError(Exception):
    """What is at the path is no mark that engram wrote."""


class VanishedError(Exception):
    """Another process removed the mark before it was locked: try again."""


def make_mark(path: Path) -> int:
    """Create an empty mark and hold it; gives its handle.

    Raises OSError, FileExistsError among them, and VanishedError or HeldError when another process
    was quicker.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o644)
    return _kept(handle, path, None)


def take_mark(path: Path, kind: str) -> tuple[int, dict[str, Any]]:
    """Hold the mark of an owner that is gone; gives its handle and what it said, {} when empty.

    Raises HeldError, ForeignError for anything that is no mark of this `kind`, VanishedError, and
    OSError, FileNotFoundError among them.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR):
            raise ForeignError(str(path)) from None
        raise
    said: dict[str, Any] = {}
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ForeignError(str(path))
        said = _read(handle, path, kind)
    except BaseException:
        os.close(handle)
        raise
    return _kept(handle, path, said), said


def write_mark(handle: int, kind: str, about: Mapping[str, Any]) -> None:
    """Write who owns the mark, and `about` what it is."""
    text = json.dumps({"format": kind, **about, **_identity()})
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def drop_mark(handle: int, path: Path) -> None:
    """Remove the mark, unless something else has its name by now, and let go of it."""
    try:
        if is_at(handle, path):
            os.unlink(path)
    except OSError:
        pass
    finally:
        os.close(handle)


def _kept(handle: int, path: Path, said: Mapping[str, Any] | None) -> int:
    """Lock a mark; `said`: by the owner before, None for a new one. Closes it when that fails."""
    try:
        locked = _lock(handle, said or {})
        if said and not (_seen_from_here(said) if locked else _is_gone(said)):
            raise HeldError(said)
        if not is_at(handle, path):
            raise VanishedError(str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock(handle: int, said: Mapping[str, Any]) -> bool:
    """Lock for ourselves; False where the file system knows no locks. Raises HeldError."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HeldError(said) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _read(handle: int, path: Path, kind: str) -> dict[str, Any]:
    raw = os.pread(handle, _MOST, 0)
    if not raw:
        return {}
    try:
        said = parse_json(raw)
    except ValueError:
        said = None
    # Locks of versions before this one say no more than these two.
    if not isinstance(said, dict) or (said.get("format") != kind and set(said) != {"pid", "host"}):
        raise ForeignError(str(path))
    return said


def _seen_from_here(said: Mapping[str, Any]) -> bool:
    """Return whether a lock of that owner would be seen here: this kernel's, or this host's.

    Locks of another machine need not reach this one, so that one that is free proves nothing.
    """
    here = _identity()
    return said.get("host") == here["host"] or bool(
        here["boot"] and said.get("boot") == here["boot"]
    )


def _is_gone(said: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote a mark is known to be gone, without locks to tell.

    A process number means something only within one boot and one namespace of processes.
    """
    here, pid = _identity(), said.get("pid")
    for name in ("boot", "namespace"):
        if not here[name] or said.get(name) != here[name]:
            return False
    return isinstance(pid, int) and _started(pid) != said.get("started")


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": pid,
        "started": _started(pid),
    }


def boot_id() -> str:
    """Return what names the time since the machine was started, "" where the system does not."""
    return _text("/proc/sys/kernel/random/boot_id")


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None when there is no such process."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

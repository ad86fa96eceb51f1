"""Marks: small files that say which process owns something, and that tell dead owners from live.

The owner holds a lock (flock) on its mark, which the kernel drops when the process ends, however it
ends. The text of the mark serves people, and file systems that know no locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram_cli.untrusted import parse_json

_MOST = 4096  # bytes of a mark
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL))


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
        if _is_at(handle, path):
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
        if not _is_at(handle, path):
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


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _seen_from_here(said: Mapping[str, Any]) -> bool:
    """Whether a lock of that owner would be seen here: this kernel's, or this host's.

    Locks of another machine need not reach this one, so that one that is free proves nothing.
    """
    here = _identity()
    return said.get("host") == here["host"] or bool(
        here["boot"] and said.get("boot") == here["boot"]
    )


def _is_gone(said: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a mark is known to be gone, without locks to tell.

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
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": pid,
        "started": _started(pid),
    }


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

"""One builder at a time: a lock file beside the table, with the pid and the host of its owner.

The lock is the kernel's (flock), so it ends with its process, however that ends. What the file says
is for people, and for file systems that several machines share without sharing locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram_cli.errors import OutputError
from engram_cli.files import output_errors
from engram_cli.untrusted import parse_json


@contextmanager
def build_lock(table: Path) -> Iterator[None]:
    """Hold the lock of `table` for the block. Raises OutputError naming the owner when it is held.

    The lock of a process that is gone is taken over; another host's cannot be judged, so it holds.
    """
    path = lock_path(table)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(table, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def lock_path(table: Path) -> Path:
    """Where the lock of a table lies."""
    return table.with_name(f"{table.name}.lock")


def _acquire(table: Path, path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = _read_owner(handle)
            if owner.get("host", socket.gethostname()) != socket.gethostname():
                raise _held(table, path, owner)
            if _is_at(handle, path):
                mark = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
                os.ftruncate(handle, 0)
                os.pwrite(handle, mark.encode(), 0)
                return handle
        except BlockingIOError:
            owner = _read_owner(handle)
            os.close(handle)
            raise _held(table, path, owner) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed the file between our open and our lock


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read_owner(handle: int) -> dict[str, Any]:
    try:
        owner = parse_json(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _held(table: Path, path: Path, owner: dict[str, Any]) -> OutputError:
    return OutputError(
        f"{table} is being built by process {owner.get('pid')} on {owner.get('host')}",
        f"wait for it; if that build is gone, remove {path}",
    )

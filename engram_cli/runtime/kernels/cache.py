"""Gives Triton a cache that it can write: where it cannot write its own, its kernels raise."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)
_ROOM = 4 * 2**20  # bytes; all kernels of a model take less
_FOLDER = "TRITON_CACHE_DIR"


def place_cache() -> None:
    """Put Triton's cache into a temporary folder, with a warning, where its own is not writable.

    The folder goes when the process ends. One that Triton keeps nowhere on a disk is left alone.
    """
    if os.environ.get("TRITON_CACHE_MANAGER"):
        return
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    own = Path(os.environ.get(_FOLDER) or Path(home, ".triton", "cache"))
    why = _refusal(own)
    if why is None:
        return
    for base in (tempfile.gettempdir(), "/dev/shm"):
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="engram-triton-", dir=base))
            if _refusal(folder) is None:
                os.environ[_FOLDER] = str(folder)  # Triton reads it for each kernel
                atexit.register(_remove, folder, os.getpid())
                _LOG.warning(
                    "Triton's compiled kernels are not kept: %s cannot be written (%s) - free some "
                    "space, or set %s to a folder on another disk",
                    own,
                    why,
                    _FOLDER,
                )
                return
            folder.rmdir()


def _refusal(folder: Path) -> str | None:
    """Return why the system does not let a file of `_ROOM` bytes be written, None where it does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = _ROOM
            while left:  # a disk that becomes full first takes a part
                left -= file.write(bytes(left)) or 0
    except OSError as error:
        return error.strerror or str(error)
    return None


def _remove(folder: Path, process: int) -> None:
    """Remove the folder, not from a process that was forked."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)

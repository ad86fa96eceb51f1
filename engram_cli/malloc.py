"""Tunes malloc of glibc: few arenas for many threads, and freed memory returned to the system.

Texts and ids are freed by other threads than the ones that made them, and glibc keeps that memory
by default. On 5 M tokens, `hash-stats` peaks at 480 to 570 MB of anonymous memory with this and at
720 MB without; with the arenas alone at 600 MB. `build-table` needs the same with and without.
Other C libraries keep less, and are left alone.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_ARENA_MAX, _ARENAS = -8, 3  # glibc's M_ARENA_MAX
_TRIM_EVERY = 2**27  # bytes of corpus
_KEPT = 2**24


def bound_arenas() -> None:
    """Let all threads of this process share three arenas.

    By default there are up to eight per core, each with what earlier threads left in it. Two arenas
    save 30 MB more and cost 5 % of the time. glibc decides when the second thread asks for memory,
    so call this before: a program may do that, a library may not.
    """
    choose = _glibc("mallopt")
    if choose is not None:
        choose(_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Return freed memory to the system, Arrow's too where it is loaded."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    release = _glibc("malloc_trim")
    if release is not None:
        release(0)


def keep_freed() -> None:
    """Let glibc keep up to 32 MB of freed memory in each arena, not 128 KB.

    It raises that limit when a block of 16 MB is freed. Work in pieces of a megabyte, in threads,
    else gives its memory back after every piece and gets it zeroed: converting 528 MB had 72,000
    page faults and now has 7,000, which is a third of its time in the kernel.
    """
    bytearray(_KEPT)


class Trimmer:
    """Trims while a corpus is read: 500 MB of text kept 500 MB allocated, now 100 MB. A trim takes
    20 ms, 1 % of the run."""

    def __init__(self) -> None:
        self._since = 0

    def advance(self, size: int) -> None:
        """Note that `size` more bytes of the corpus were read."""
        self._since += size
        if self._since >= _TRIM_EVERY:
            self._since = 0
            trim()


def _glibc(name: str) -> Any:
    """Return a function of glibc, None with another C library."""
    try:
        return getattr(ctypes.CDLL(None), name) if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None

"""Keeps compiled kernels on the disk; a cache that cannot be read or written stops no work.

Numba's own cache raises what the disk raises, and loads whatever lies under the name of an entry.
Where the disk was full when an entry was written, that is an entry of the sources before.
"""

from __future__ import annotations

import inspect
import logging
import os
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

from engram_cli.version import __version__

_LOG = logging.getLogger(__name__)


class _CacheFile(IndexDataCacheFile):
    """The files of a kernel: each entry says what it is of, and another is not loaded."""

    def save(self, key: Any, data: Any) -> None:
        """Write an entry with what it is of. Raises OSError."""
        super().save(key, (self._owner(key), data))

    def load(self, key: Any) -> Any:
        """Return an entry, None where there is none of this key and these sources."""
        found = super().load(key)
        owned = isinstance(found, tuple) and len(found) == 2 and found[0] == self._owner(key)
        return found[1] if owned else None

    sources: tuple[tuple[str, int, int], ...] = ()  # as `_sources` gives them

    def _owner(self, key: Any) -> tuple[Any, ...]:
        """Return what must be equal: the versions of Numba and engram, the sources, the key."""
        return self._version, __version__, self._source_stamp, self.sources, key


def _sources(function: Any) -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of each file whose code is in a kernel: also what it calls.

    Numba looks at the file of the kernel alone.
    """
    files: set[str] = set()
    waiting, seen = [function], {function}
    while waiting:
        own = waiting.pop()
        files.add(own.__code__.co_filename)
        names = own.__code__.co_names
        used = [own.__globals__.get(name) for name in names]
        modules = [each for each in used if isinstance(each, ModuleType)]
        used += [vars(module).get(name) for module in modules for name in names]
        for each in used:
            called = inspect.unwrap(each) if callable(each) else None
            if isinstance(called, FunctionType) and called not in seen:
                seen.add(called)
                waiting.append(called)
    found = ((file, os.stat(file)) for file in sorted(files) if os.path.exists(file))
    return tuple((os.path.basename(f), s.st_mtime_ns, s.st_size) for f, s in found)


class KernelCache(FunctionCache):
    """Numba's cache of a function, which counts as empty where it is damaged or not writable."""

    _said = False  # the note, once in a process

    def __init__(self, function: Any) -> None:
        """Raises RuntimeError where no folder for the cache is writable."""
        super().__init__(function)
        self._cache_file = _CacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )
        self._cache_file.sources = _sources(function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, None where it must be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except (OSError, MemoryError):  # no damage
            return None
        except Exception:  # a damaged pickle raises anything
            with suppress(OSError):
                self.flush()  # else nothing could be saved either
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save what was compiled; say once in a process where that fails, and why."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a damaged index that could not be replaced raises anything
            self.disable()
            if not KernelCache._said:
                KernelCache._said = True
                # A warning, which Python shows by default: the next command takes seconds again.
                _LOG.warning(
                    "compiled kernels are not kept, and are compiled again by the next command: %s "
                    "cannot be written (%s) - free some space, or set NUMBA_CACHE_DIR to a folder "
                    "on another disk",
                    self.cache_path,
                    getattr(error, "strerror", None) or error,
                )

"""Reads the files of one source behind an address: whole small ones, and ranges of others.

A session remembers what it was told of each file. A file that differs later is an error: rows of
two versions never mix. What it holds in memory is bounded.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import RLock
from typing import Any, TypeVar

from engram_cli.errors import EngramError, SourceError
from engram_cli.remote.store import ChangedError, Entry, RangesIgnoredError, Store

T = TypeVar("T")

BLOCK_BYTES = 64 * 2**10  # read at the start of a file: most headers, in one request
WHOLE_BYTES = 256 * 2**20  # the largest index or tokenizer that is read whole
HELD_BYTES = 64 * 2**20  # of blocks and small files, kept for when they are read again
# Requests in flight. A merged range may skip GAP_BYTES that nobody asked for: at 100 MB/s and
# 50 ms a request, 16 in flight, a request costs as much time as 310 KB.
IN_FLIGHT, GAP_BYTES, RANGE_BYTES = 16, 256 * 2**10, 2 * 2**20
_NETWORK = "check the address and the network, then run it again"
_WAITING = 4  # ranges that were read and not used yet
TRIES = 4
_UNREACHED = (socket.gaierror, ConnectionRefusedError, TimeoutError)
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH)
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds; each wait is twice the one before


class Session:
    """The files of one source, by key. `base`: the address that the keys are below.

    `root`: the key of what was given. `container`: the parts of a path that name the store.
    """

    def __init__(self, store: Store, base: str, root: str, container: tuple[str, ...]) -> None:
        self.store, self.base, self.root, self.container = store, base, root, container
        # What nothing can be read after: the store cannot be reached, or denies access.
        self.failure: EngramError | None = None
        self._is_lost = False
        self._known: dict[str, Entry | None] = {}
        self._lists: dict[str, Mapping[str, Entry] | None] = {}
        self._held: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._held_bytes = 0
        self.prefixes: dict[str, Any] = {}  # by key, of `remote.path`
        self._lock = RLock()

    def entry(self, key: str) -> Entry | None:
        """Return what there is at `key`, None for nothing. Raises PermissionError, SourceError."""
        with self._lock:
            if key in self._known:
                return self._known[key]
            inside_file = any(
                above in self._known and (found := self._known[above]) and found.kind == "file"
                for above in _above(key)
            )
            self._known[key] = None if inside_file else self._asked(key)
            return self._known[key]

    def look_at(self, keys: Sequence[str]) -> None:
        """Ask for several files at a time, so that `entry` knows them. Raises as `entry`."""
        wanted = [key for key in dict.fromkeys(keys) if key not in self._known]
        if self.store.lists or len(wanted) < 2:
            return

        def ask(key: str) -> tuple[str, Entry | None] | None:
            try:
                return key, self._asked(key)
            except PermissionError:  # `entry` asks again, and says so
                return None

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            found = [each for each in pool.map(ask, wanted) if each is not None]
        with self._lock:
            self._known.update(found)

    def _asked(self, key: str) -> Entry | None:
        local = self.store.local(key)
        if local is not None:
            return Entry("file", local.stat().st_size, "here")
        folder, _, name = key.rpartition("/")
        if self.store.lists and key.startswith(f"{self.root}/" if self.root else ""):
            listed = self.entries(folder) if key else None
            if listed is not None:
                return listed.get(name)
        return self._call(key, lambda: self.store.entry(key))

    def entries(self, key: str) -> Mapping[str, Entry] | None:
        """Return what is in a folder by name; None where the store does not tell."""
        with self._lock:
            if key not in self._lists:
                self._lists[key] = self._call(key, lambda: self.store.entries(key))
            return self._lists[key]

    def names(self, key: str) -> list[str] | None:
        """Return the names in a folder, sorted; None where the store does not tell."""
        if self.store.lists:
            found = self.entries(key)
            return None if found is None else sorted(found)
        with self._lock:
            return self._call(key, lambda: self.store.names(key))

    def known(self) -> Iterator[tuple[str, Entry]]:
        """Yield the files that were looked at, by key."""
        with self._lock:
            found = {key: each for key, each in self._known.items() if each is not None}
            for folder, listed in self._lists.items():
                for name, each in (listed or {}).items():
                    found.setdefault(f"{folder}/{name}" if folder else name, each)
        yield from ((key, each) for key, each in found.items() if each.kind == "file")

    def file(self, key: str) -> Entry:
        """Return the file at `key`. Raises FileNotFoundError, PermissionError, SourceError."""
        found = self.entry(key)
        if found is None:
            raise FileNotFoundError(2, os.strerror(2), self.name(key))
        if found.kind != "file":
            raise IsADirectoryError(21, os.strerror(21), self.name(key))
        return found

    def name(self, key: str) -> str:
        """Return the address of a file, for messages."""
        return f"{self.base}/{key}" if key else self.base

    def read(self, key: str, begin: int, end: int) -> bytes:
        """Read bytes `begin` to `end` of a file, fewer at its end.

        Raises FileNotFoundError, PermissionError, and SourceError for everything else.
        """
        entry = self.file(key)
        end = min(end, entry.size)
        if begin >= end:
            return b""
        local = self.store.local(key)
        if local is not None:
            with local.open("rb") as file:
                file.seek(begin)
                return file.read(end - begin)
        raw = self._call(key, lambda: self.store.read(key, begin, end, entry))
        if len(raw) != end - begin:
            raise self._failed(key, f"sent {len(raw):,} bytes of {end - begin:,}")
        return raw

    def start(self, key: str) -> bytes:
        """Return the first bytes of a file, as many as are read at once; they are kept."""
        return self._kept(key, BLOCK_BYTES)

    def whole(self, key: str) -> bytes:
        """Return all of a small file. Raises as `read`, and SourceError for a large one."""
        entry = self.file(key)
        if entry.size > WHOLE_BYTES:
            raise SourceError(
                f"{self.name(key)} has {entry.size:,} bytes, too many to read whole",
                "check the address",
            )
        return self._kept(key, max(BLOCK_BYTES, entry.size))

    def _kept(self, key: str, size: int) -> bytes:
        with self._lock:
            if (key, size) not in self._held:
                raw = self.read(key, 0, size)
                self._held[key, size] = raw
                self._held_bytes += len(raw)
                while self._held_bytes > HELD_BYTES and len(self._held) > 1:
                    self._held_bytes -= len(self._held.popitem(last=False)[1])
            self._held.move_to_end((key, size))
            return self._held[key, size]

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[tuple[int, bytes]]:
        """Read (key, begin, end) with several requests in flight; yield (index, bytes) in order.

        Raises as `read`. Holds at most IN_FLIGHT + 4 ranges.
        """
        if len(wanted) == 1:
            yield 0, self.read(*wanted[0])
            return
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            running: OrderedDict[int, Future[bytes]] = OrderedDict()
            try:
                for index, each in enumerate(wanted):
                    running[index] = pool.submit(self.read, *each)
                    if len(running) >= IN_FLIGHT + _WAITING:
                        first, done = running.popitem(last=False)
                        yield first, done.result()
                while running:
                    first, done = running.popitem(last=False)
                    yield first, done.result()
            finally:
                for left in running.values():
                    left.cancel()

    def _call(self, key: str, call: Callable[[], T]) -> T:
        """Call the store, again after a wait where that may help; translate what it raises."""
        for attempt in range(TRIES):
            if self._is_lost and self.failure is not None:
                raise self.failure
            try:
                return call()
            except Exception as error:
                if attempt + 1 == TRIES or not self.store.may_retry(error):
                    raise self._translated(key, error) from None
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
            time.sleep(wait * random.uniform(0.5, 1.0))  # so that requests in flight spread
        raise AssertionError

    def _translated(self, key: str, error: Exception) -> Exception:
        """Return what is raised instead of an error of a store's package."""
        if isinstance(error, FileNotFoundError):
            return error
        if isinstance(error, PermissionError):
            denied = SourceError(f"access to {self.name(key)} is denied", self.store.hint)
            self.failure = self.failure or denied
            return PermissionError(13, "access is denied", self.name(key))
        if isinstance(error, EngramError):
            failure = error
        elif isinstance(error, ChangedError):
            failure = SourceError(
                f"{self.name(key)} has changed while it was read", "run the command again"
            )
        elif isinstance(error, RangesIgnoredError):
            failure = SourceError(
                f"the server of {self.name(key)} ignores ranges and would send the whole file",
                "download it first, or serve it by a server that knows ranges, such as nginx",
            )
        else:
            failure, self._is_lost = SourceError(*failure_text(self.name(key), error)), True
        self.failure = self.failure or failure
        return failure

    def _failed(self, key: str, reason: str) -> SourceError:
        return SourceError(f"cannot read {self.name(key)}: {reason}", _NETWORK)


def _above(key: str) -> Iterator[str]:
    """Yield the keys of the folders that a key is in."""
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def failure_text(name: str, error: BaseException) -> tuple[str, str]:
    """Return the message and the hint for an address that was not answered, or not well."""
    what = f"{name} cannot be reached" if is_unreached(error) else f"cannot read {name}"
    return f"{what}: {reason_of(error)}", _NETWORK


def is_unreached(error: BaseException) -> bool:
    """Return whether there was no host, no connection, or no answer in time."""
    inner = _innermost(error)
    if isinstance(error, TimeoutError) or isinstance(inner, _UNREACHED):
        return True
    return isinstance(inner, OSError) and inner.errno in _NO_WAY


def behind_missing(error: FileNotFoundError) -> BaseException | None:
    """Return what a package calls "not found" and is another failure; None for a missing file.

    The http filesystem of fsspec says so also where there is no host. A bucket that may not be
    listed answers 403 for what is missing.
    """
    cause = error.__cause__
    missing = cause is None or isinstance(cause, FileNotFoundError)
    return None if missing or getattr(cause, "status", 0) in (403, 404, 410) else cause


def _innermost(error: BaseException) -> BaseException:
    """Return the error of the system below those of packages."""
    inner: BaseException = getattr(error, "os_error", None) or error  # as aiohttp keeps it
    while (below := inner.__cause__ or inner.__context__) is not None:  # as httpx does
        inner = below
    return inner


def reason_of(error: BaseException) -> str:
    """Return one line on what went wrong, for people."""
    inner = _innermost(error)
    if isinstance(inner, socket.gaierror):
        host = getattr(error, "host", None)
        return f"there is no host {host}" if host else "its host is not found"
    if isinstance(error, TimeoutError) or isinstance(inner, TimeoutError):
        return "no answer in time"
    if isinstance(inner, ConnectionRefusedError):
        return "the connection is refused"
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__

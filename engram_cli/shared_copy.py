"""One copy of some bytes for all processes of a user on a machine: a file in /dev/shm.

The first process fills the file and then marks it as whole; others wait for the mark. Everyone who
uses the copy holds a shared lock (flock) on it, the one who fills or removes it an exclusive one.
The kernel drops the locks of a process that ends, however it ends. So an exclusive lock on a file
without the mark means that the process that filled it was killed: the next one fills it again. A
file that nobody has locked is a leftover, which the next start uses or removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from engram_cli.errors import InputError
from engram_cli.files import canonical_json, is_at
from engram_cli.sizes import file_system, free_bytes

FOLDER = "ENGRAM_SHARED_MEMORY"
HEADER_BYTES = 4096  # before the bytes of the copy
PRIVATE = "or give each process its own copy with placement=host,private"
_DEFAULT = "/dev/shm"
_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_MAGIC = b"engram shared rows 1\n"
_STATE = struct.Struct("<qqq")  # bytes filled, process that fills, 1 once the copy is whole
_STATE_BEGIN = HEADER_BYTES - _STATE.size
_NAME = re.compile(r"[0-9a-f]{32}\.rows")
_RESERVED_AT_ONCE = 2**30
_POLL_SECONDS = 0.05
_SAY_AFTER_SECONDS, _SAY_EVERY_SECONDS = 5.0, 10.0
_LOG = logging.getLogger(__name__)

Mapped = TypeVar("Mapped", bound=mmap.mmap)
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a copy holds: `size` bytes, and `about` in JSON values, which tell it from others."""

    about: Mapping[str, Any]
    size: int

    @property
    def header(self) -> bytes:
        """Return the first bytes of the file."""
        text = _MAGIC + canonical_json({**self.about, "bytes": self.size}) + b"\n"
        return text.ljust(_STATE_BEGIN, b"\0")

    @property
    def name(self) -> str:
        """Return the name of the file, the same for equal contents."""
        return f"{hashlib.sha256(self.header).hexdigest()[:32]}.rows"


class SharedCopy(Generic[Mapped]):
    """A copy that this process uses: `memory` is the whole file, mapped; it is not written to.

    `filled`: whether this process filled it.
    """

    def __init__(self, handle: int, path: Path, memory: Mapped, *, filled: bool) -> None:
        self.path, self.memory, self.filled = path, memory, filled
        self._handle: int | None = handle
        self._process = os.getpid()

    def release(self) -> None:
        """Stop using the copy; the last process removes the file. What is mapped stays readable."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        # A forked child has the lock of its parent, and must leave it as it is.
        if os.getpid() == self._process and _lock(handle, fcntl.LOCK_EX):
            _remove(handle, self.path)
            with suppress(OSError):  # which holds other copies
                self.path.parent.rmdir()
        os.close(handle)


def shared_folder() -> Path:
    """Return the folder of this user's copies. Raises InputError where there is no place for it."""
    base = Path(os.environ.get(FOLDER) or _DEFAULT)
    if not base.is_dir():
        raise InputError(
            f"{base} is no folder, and rows are shared in one",
            f"name a tmpfs or hugetlbfs with {FOLDER}, {PRIVATE}",
        )
    kind = file_system(base)
    if kind not in _IN_MEMORY:
        raise InputError(
            f"{base} is on {kind or 'an unknown file system'}, and rows are shared in memory",
            f"name a tmpfs or hugetlbfs with {FOLDER}, {PRIVATE}",
        )
    return base / f"engram-{os.geteuid()}"


def open_copy(
    contents: Contents,
    fill: Callable[[Mapped, Advance], None],
    make: Callable[[int, int], Mapped],
) -> SharedCopy[Mapped]:
    """Return the copy of `contents`; fill it if nobody has, wait if somebody does.

    `fill(memory, advance)` writes the bytes from HEADER_BYTES on, and reports how many are done;
    what it raises is passed on, and another process that waits then fills the copy. `make(handle,
    size)` maps the file: `mmap.mmap`, or a subclass. Raises InputError where the system refuses, or
    something else has the name of the file.
    """
    waiting = _Waiting(contents)
    while True:
        path = shared_folder() / contents.name
        try:
            _make_folder(path.parent)
            handle = _open(path, os.O_CREAT)
        except FileNotFoundError:
            continue  # another process removed the empty folder
        try:
            copy = _try(handle, path, contents, fill, make)
        except BaseException:
            os.close(handle)
            raise
        if copy is not None:
            return copy
        try:
            waiting.wait(handle)
        finally:
            os.close(handle)


def held_bytes(copies: Iterable[Contents]) -> int:
    """Return how much memory is already taken by copies, whole or not."""
    folder = shared_folder()
    return sum(min(each.size, _taken(folder / each.name)) for each in copies)


def check_room(copies: Iterable[Contents]) -> None:
    """Raise InputError if copies do not fit in the shared folder; leftovers are removed first."""
    folder, wanted = shared_folder(), list(copies)
    remove_leftovers(keep={each.name for each in wanted})
    base = folder.parent
    missing = sum(max(0, _file_bytes(each, base) - _taken(folder / each.name)) for each in wanted)
    there = free_bytes(base)
    if there is not None and missing > there:
        size, pages = -(-missing // 2**30), -(-missing // os.statvfs(base).f_bsize)
        how = f"mount -o remount,size={size}G {base}; docker run --shm-size={size}g"
        if file_system(base) == "hugetlbfs":
            how = f"{pages:,} free huge pages are needed: sysctl vm.nr_hugepages"
        raise InputError(
            f"the rows need {missing:,} bytes of {base}, {there:,} are free: "
            f"{missing - there:,} too many",
            f"make it larger ({how}), name another tmpfs or hugetlbfs with {FOLDER}, {PRIVATE}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A copy that no process uses: `path`, and the `size` of its memory in bytes."""

    path: Path
    size: int


def remove_leftovers(keep: Iterable[str] = (), *, dry_run: bool = False) -> list[Leftover]:
    """Remove the copies that no process uses, but those whose names to `keep`; return them."""
    folder, found = shared_folder(), []
    try:
        names = {name for name in os.listdir(folder) if _NAME.fullmatch(name)}
    except OSError:
        return []
    for path in (folder / name for name in sorted(names - set(keep))):
        with suppress(OSError, InputError):
            handle = _open(path)
            try:
                if _lock(handle, fcntl.LOCK_EX) and _is_own(handle):
                    found.append(Leftover(path=path, size=_taken(path)))
                    if not dry_run:
                        _remove(handle, path)
            finally:
                os.close(handle)
    with suppress(OSError):
        if not dry_run:
            folder.rmdir()
    return found


def _try(
    handle: int,
    path: Path,
    contents: Contents,
    fill: Callable[[Mapped, Advance], None],
    make: Callable[[int, int], Mapped],
) -> SharedCopy[Mapped] | None:
    """Return the copy if it is whole or can be filled now; None if another process is at work."""
    memory = None
    if _lock(handle, fcntl.LOCK_EX):
        if not is_at(handle, path):
            return None
        if not _is_own(handle):
            raise InputError(f"{path} was not written by engram", "move it away")
        if not _is_whole(handle, contents):
            try:
                memory = _fill(handle, path, contents, fill, make)
            except BaseException:
                _remove(handle, path)
                raise
        fcntl.flock(handle, fcntl.LOCK_SH)
    elif not _is_whole(handle, contents) or not _lock(handle, fcntl.LOCK_SH):
        return None
    # Between two locks another process may have removed it.
    if not is_at(handle, path) or not _is_whole(handle, contents):
        return None
    if memory is not None:
        return SharedCopy(handle, path, memory, filled=True)
    return SharedCopy(handle, path, make(handle, os.fstat(handle).st_size), filled=False)


def _fill(
    handle: int,
    path: Path,
    contents: Contents,
    fill: Callable[[Mapped, Advance], None],
    make: Callable[[int, int], Mapped],
) -> Mapped:
    """Reserve the memory, have it filled, and mark the copy as whole; return it, mapped."""
    total, block = _file_bytes(contents, path), os.fstatvfs(handle).f_bsize
    try:
        if os.fstat(handle).st_size != total:
            os.ftruncate(handle, 0)
        # The header first: a file without one is not known for a copy.
        os.posix_fallocate(handle, 0, block)
        with mmap.mmap(handle, block) as head:
            head[:_STATE_BEGIN] = contents.header
            head[_STATE_BEGIN:HEADER_BYTES] = _STATE.pack(0, os.getpid(), 0)
        # Memory that is not reserved would end the process with SIGBUS when it runs out. In pieces,
        # because each signal makes the call begin again.
        for begin in range(0, total, _RESERVED_AT_ONCE):
            os.posix_fallocate(handle, begin, min(_RESERVED_AT_ONCE, total - begin))
        memory = make(handle, total)
    except OSError as error:
        raise InputError(
            f"{total:,} bytes of {path.parent.parent} are refused: {error.strerror}",
            f"make it larger, name another tmpfs or hugetlbfs with {FOLDER}, {PRIVATE}",
        ) from None
    lock, done = threading.Lock(), 0

    def advance(size: int) -> None:
        nonlocal done
        with lock:
            done += size
            memory[_STATE_BEGIN:HEADER_BYTES] = _STATE.pack(done, os.getpid(), 0)

    fill(memory, advance)
    memory.flush()
    memory[_STATE_BEGIN:HEADER_BYTES] = _STATE.pack(contents.size, os.getpid(), 1)
    memory.flush()
    return memory


class _Waiting:
    """Waits for the process that fills a copy, and says how far that is."""

    def __init__(self, contents: Contents) -> None:
        self._size = max(contents.size, 1)
        self._say_at = time.monotonic() + _SAY_AFTER_SECONDS

    def wait(self, handle: int) -> None:
        time.sleep(_POLL_SECONDS)
        if time.monotonic() < self._say_at:
            return
        self._say_at = time.monotonic() + _SAY_EVERY_SECONDS
        filled, process, _ = _state(os.pread(handle, HEADER_BYTES, 0))
        # A warning, which Python shows by default: a silent wait looks like a hang.
        _LOG.warning(
            "waiting for process %d, which fills the shared rows: %.0f %% of %s bytes",
            process,
            100 * filled / self._size,
            f"{self._size:,}",
        )


def _make_folder(folder: Path) -> None:
    """Make the folder of this user, or take it. Raises InputError if it is not this user's."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o700)
        about = folder.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot make {folder}: {error.strerror}", f"name another place with {FOLDER}"
        ) from None
    if not stat.S_ISDIR(about.st_mode) or not _is_private(about):
        raise InputError(
            f"{folder} is no folder that this user alone may enter",
            f"remove it, or name another place with {FOLDER}",
        )


def _open(path: Path, create: int = 0) -> int:
    """Open a copy and return its handle. Raises InputError for what is no private file."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | create
    try:
        handle = os.open(path, flags, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}", "move it away") from None
    about = os.fstat(handle)
    if stat.S_ISREG(about.st_mode) and _is_private(about) and about.st_nlink <= 1:
        return handle
    os.close(handle)
    raise InputError(f"{path} is no file of this user alone", "move it away")


def _is_private(about: os.stat_result) -> bool:
    return about.st_uid == os.geteuid() and not about.st_mode & 0o077


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(handle: int, path: Path) -> None:
    """Remove a file that is locked, unless another has its name by now."""
    with suppress(OSError):
        if is_at(handle, path):
            path.unlink()


def _is_own(handle: int) -> bool:
    """Whether a file has the header of a copy, or was about to get one."""
    head = os.pread(handle, HEADER_BYTES, 0)
    return head.startswith(_MAGIC) or _MAGIC.startswith(head.rstrip(b"\0"))


def _is_whole(handle: int, contents: Contents) -> bool:
    head = os.pread(handle, HEADER_BYTES, 0)
    size = os.fstat(handle).st_size
    return (
        size >= HEADER_BYTES + contents.size
        and head[:_STATE_BEGIN] == contents.header
        and _state(head)[2] == 1
    )


def _state(head: bytes) -> tuple[int, int, int]:
    if len(head) < HEADER_BYTES:
        return 0, 0, 0
    filled, process, whole = _STATE.unpack_from(head, _STATE_BEGIN)
    return filled, process, whole


def _file_bytes(contents: Contents, place: Path) -> int:
    """Return the size of the file: whole pages of the file system that `place` is on."""
    block = os.statvfs(place).f_bsize
    return -(-(HEADER_BYTES + contents.size) // block) * block


def _taken(path: Path) -> int:
    """Return the memory that a file takes, 0 where there is none."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0

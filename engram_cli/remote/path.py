"""A path behind an address, which reads as a path of this machine does.

Code that is given one reads files by `open`, `read_bytes`, `stat` and their like, and needs not
know where they are. What maps files asks `is_remote` first. Paths made from one (`/`, `parent`,
`with_name`) belong to the same session. Nothing outside what was given is read.
"""

from __future__ import annotations

import io
import os
import stat as modes
from collections.abc import Generator, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, ClassVar, TypeGuard

from engram_cli.errors import ArtifactError, SourceError
from engram_cli.files import local_path
from engram_cli.remote.session import BLOCK_BYTES, HELD_BYTES, RANGE_BYTES, Session
from engram_cli.remote.store import Store

_MOST_PREFIX = 128 * 2**20  # of a header that is read as it grows; the largest released has 20 MB
_LONGEST_STEP = 8 * 2**20
AHEAD_BYTES, _TURNS = 32 * 2**20, 4  # read ahead, after so many reads in turn


class RemotePath(PosixPath):
    """A path of a session. Made by `remote_path`; every session has a class of its own.

    `session`: its files.
    """

    session: ClassVar[Session]

    def __str__(self) -> str:
        protocol, *rest = self.parts
        return f"{protocol}//{'/'.join(rest)}"

    @property
    def key(self) -> str:
        """The name of the file in its store. Raises SourceError for one outside of it."""
        parts, container = self.parts, self.session.container
        outside = parts[: len(container)] != container
        if outside or any(part == ".." or "\0" in part for part in parts):
            raise SourceError(
                f"{str(self)[:200]!r} leads out of {self.session.base}",
                "the files of a source lie in it: take the source again",
            )
        return "/".join(parts[len(container) :])

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return kind and size. Raises FileNotFoundError, PermissionError, SourceError."""
        found = self.session.entry(self.key)
        if found is None:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        kind = modes.S_IFREG if found.kind == "file" else modes.S_IFDIR
        return os.stat_result((kind | 0o444, 0, 0, 1, 0, 0, found.size, 0, 0, 0))

    lstat = stat

    def _kind(self) -> str | None:
        try:
            found = self.session.entry(self.key)
        except PermissionError:  # a store may say so of what is not there
            return None
        return None if found is None else found.kind

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is anything. Raises SourceError."""
        return self._kind() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a file. Raises SourceError."""
        return self._kind() == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a folder. Raises SourceError."""
        return self._kind() == "folder"

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path itself."""
        return self

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Open a file to read its bytes. Raises as `Session.read`."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} is opened with {mode}, and is only read")
        return RangedFile(self)

    def read_bytes(self) -> bytes:
        """Read all of a small file. Raises as `Session.whole`."""
        return self.session.whole(self.key)

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """Yield what is in a folder. Raises FileNotFoundError where the store does not tell."""
        found = self.session.names(self.key)
        if found is None:
            raise FileNotFoundError(2, "the server lists no files", str(self))
        for name in found:
            yield self / name

    def glob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield the files of a folder that match a pattern of one name."""
        try:
            yield from (path for path in self.iterdir() if fnmatchcase(path.name, pattern))
        except FileNotFoundError:
            return

    def rglob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield the files below that are known so far, all of them where the store lists them."""
        inside = f"{self.key}/" if self.key else ""
        for key, _entry in self.session.known():
            if key.startswith(inside) and fnmatchcase(key, f"*{pattern}"):
                yield self / key.removeprefix(inside)

    def prefix(self) -> Prefix:
        """Return the bytes of the file, which are read from its start as far as they are used.

        Those of a session are kept, since a header is read to recognise a file and to open it.
        """
        held = self.session.prefixes
        if self.key not in held:
            while held and sum(map(Prefix.held, held.values())) > HELD_BYTES:
                del held[next(iter(held))]
            held[self.key] = Prefix(self)
        found: Prefix = held[self.key]
        return found


class RangedFile(io.RawIOBase):
    """A file that is read in ranges: one for each `read`, none within its first block.

    Large reads are of several ranges in flight. Whoever reads on and on gets what lies ahead too.
    """

    def __init__(self, path: RemotePath) -> None:
        self.name = str(path)
        self._session, self._key, self._at = path.session, path.key, 0
        self._size = path.session.file(self._key).size
        self._ahead, self._ahead_at = b"", 0  # what was read beyond what was asked for
        self._end, self._in_turn = 0, 0  # of the last read; reads that began where one ended

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; nothing is read."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, begin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, but for the end of the file; several requests where it is large."""
        target = memoryview(buffer).cast("B")
        end = min(self._at + len(target), self._size)
        done = 0
        if self._at < min(end, BLOCK_BYTES) and len(target) <= RANGE_BYTES:
            done = self._take(target, 0, self._session.start(self._key)[self._at : end])
        self._in_turn = self._in_turn + 1 if self._at == self._end else 0
        if len(target) < AHEAD_BYTES and self._in_turn > _TURNS:
            while self._at + done < end:
                skipped = self._at + done - self._ahead_at
                if not 0 <= skipped < len(self._ahead):
                    self._ahead_at, skipped = self._at + done, 0
                    upto = min(self._size, self._ahead_at + AHEAD_BYTES)
                    self._ahead = b"".join(self._ranges(self._ahead_at, upto))
                done = self._take(
                    target, done, self._ahead[skipped : skipped + end - self._at - done]
                )
        for raw in self._ranges(self._at + done, end):
            done = self._take(target, done, raw)
        self._at += done
        self._end = self._at
        return done

    def readall(self) -> bytes:
        """Return all that is left, in as few reads as there are ranges."""
        raw = bytearray(max(0, self._size - self._at))
        return bytes(raw[: self.readinto(raw)])

    def _ranges(self, begin: int, end: int) -> Iterator[bytes]:
        begins = range(begin, end, RANGE_BYTES)
        ranges = [(self._key, each, min(each + RANGE_BYTES, end)) for each in begins]
        for _, raw in self._session.ranges(ranges) if ranges else ():
            yield raw

    @staticmethod
    def _take(target: memoryview, done: int, raw: bytes) -> int:
        target[done : done + len(raw)] = raw
        return done + len(raw)


class Prefix:
    """The bytes of a file, sliced from its start on: ranges are read as they are asked for.

    Held in memory, so that the longest is bounded. Raises ArtifactError for more.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path, self._held, self._step = path, bytearray(), BLOCK_BYTES
        self._size = path.stat().st_size

    def __len__(self) -> int:
        return self._size

    def held(self) -> int:
        """Return how many bytes are in memory."""
        return len(self._held)

    def __getitem__(self, wanted: slice) -> bytes:
        end = min(wanted.stop, self._size)
        if end > _MOST_PREFIX:
            raise ArtifactError(
                f"{self._path} claims a header of more than {_MOST_PREFIX:,} bytes",
                "the file is damaged: take it again",
            )
        if not self._held:
            self._held += self._path.session.start(self._path.key)
        while len(self._held) < end:
            begin = len(self._held)
            upto = min(self._size, max(end, begin + self._step))
            self._held += self._path.session.read(self._path.key, begin, upto)
            self._step = min(_LONGEST_STEP, 2 * self._step)
        return bytes(self._held[wanted.start : end])


def remote_path(store: Store, text: str, container: int) -> RemotePath:
    """Return the path of an address in a store, with a session of its own.

    `container`: how many of its parts name the store: of https://host/a, two.
    """
    parts = PosixPath(text).parts
    base = f"{parts[0]}//{'/'.join(parts[1:container])}"
    session = Session(store, base, "/".join(parts[container:]), parts[:container])
    own = type("RemotePath", (RemotePath,), {"session": session})
    path: RemotePath = own(text)
    return path


def is_remote(path: Path | None) -> TypeGuard[RemotePath]:
    """Return whether a path is behind an address."""
    return isinstance(path, RemotePath)


def near(path: Path) -> Path:
    """Return the copy of a file that this machine has already, else the path itself."""
    found = path.session.store.local(path.key) if is_remote(path) else None
    return path if found is None else found


def readable_path(path: Path | str) -> Path:
    """Return a path to read from. Raises InputError for an address that was not located."""
    return path if isinstance(path, RemotePath) else local_path(path)


def open_whole(path: Path) -> BinaryIO:
    """Open a file for a reader that jumps about in it: one behind an address is read whole first.

    Raises OSError, and SourceError for a file behind an address that is too large for that.
    """
    return io.BytesIO(path.read_bytes()) if is_remote(path) else path.open("rb")


def is_distant(file: Any) -> bool:
    """Return whether an open file is behind an address, so that the kernel knows nothing of it."""
    return isinstance(file, RangedFile)


def look_at(paths: Iterable[Path]) -> None:
    """Ask what there is at several paths of one session at a time; paths of this machine are left.

    Raises SourceError.
    """
    distant = [path for path in paths if is_remote(path)]
    if distant:
        distant[0].session.look_at([path.key for path in distant])


def read_ranges(wanted: Sequence[tuple[RemotePath, int, int]]) -> Iterator[tuple[int, bytes]]:
    """Read (path, begin, end) of one session, several at a time; yield (index, bytes) in order."""
    if wanted:
        session = wanted[0][0].session
        yield from session.ranges([(path.key, begin, end) for path, begin, end in wanted])

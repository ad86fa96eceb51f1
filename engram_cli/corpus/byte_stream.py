"""Opens a corpus file as a stream of bytes: local, remote or standard input, decompressed.

Compression is detected by the first bytes and undone as a stream, so memory does not grow with the
file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from engram_cli.corpus import remote
from engram_cli.corpus.base import CorpusFile
from engram_cli.corpus.decompress import HEAD, DecompressedStream, archive, compression_of
from engram_cli.corpus.pieces import as_many
from engram_cli.corpus.stamps import local_file, unchanged
from engram_cli.errors import CorpusError, InputError

_BUFFER = 2**18
_PIECE = 2**20  # bytes read at a time where a file says how long something is

Decompressed: TypeAlias = tuple[BinaryIO, Callable[[int], int]]


@contextmanager
def opened(file: CorpusFile) -> Iterator[BinaryIO]:
    """Open `file` without decompressing it; system errors become CorpusError.

    Raises CorpusError where a local file is not the one that was planned, or changes until the end.
    """
    try:
        if file.url is not None:
            with remote.opened(file.url) as stream:
                yield stream
        elif file.path is not None:
            with file.path.open("rb") as stream, unchanged(file, stream.fileno()):
                yield stream
        else:
            yield _standard_input()
    except OSError as error:
        reason = error.strerror or error
        raise CorpusError(f"cannot read {file.name}: {reason}", "check the file") from None


@contextmanager
def open_decompressed(file: CorpusFile) -> Iterator[Decompressed]:
    """Open `file`, decompressed where it is compressed.

    Comes with a function that turns the number of bytes just taken from the stream into the bytes
    of the file read for them. Raises CorpusError for a truncated or damaged archive.
    """
    with opened(file) as plain:
        stream: Any = plain if hasattr(plain, "peek") else io.BufferedReader(cast(Any, plain))
        head = stream.peek(HEAD)[:HEAD]
        kind = compression_of(head)
        if kind is None:
            if archive(head) is not None:
                raise CorpusError(
                    f"{file.name} is compressed with {archive(head)}", "decompress it first"
                )
            yield stream, as_many
            return
        meter = _Meter(stream, file.name)
        with io.BufferedReader(DecompressedStream(meter, kind, file.name), _BUFFER) as result:
            yield cast(BinaryIO, result), meter.spent


def sibling_file(file: CorpusFile, name: str) -> CorpusFile:
    """Return the file called `name` in the folder of `file`, or in one below it.

    Raises CorpusError when there is none.
    """
    if file.url is not None:
        return remote.file_at(f"{file.url.rpartition('/')[0]}/{name}", file.format)
    if file.path is None:
        raise CorpusError(f"{file.name} needs {name} next to it", "give the file's path")
    path = Path(file.path.parent, name)
    try:
        return local_file(path, file.format)
    except OSError as error:
        raise CorpusError(
            f"{file.name} needs {path.name} next to it: {error.strerror}", "copy that file too"
        ) from None
    except ValueError:  # a NUL, or half of a surrogate pair
        raise CorpusError(
            f"{file.name} needs {name!r}, which is not a valid file name",
            "write the index again",
        ) from None


def basename(file: CorpusFile) -> str:
    """Return the last part of a file's path or address."""
    return file.name.rpartition("/")[2] if file.path is None else file.path.name


def length_of(file: CorpusFile, stream: BinaryIO) -> int:
    """Return the length of an opened file and seek to its start. Raises CorpusError."""
    if not stream.seekable():
        raise CorpusError(f"{file.name}: {file.format} cannot be read from a pipe", "give a file")
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return length


def exactly(stream: BinaryIO, length: int, name: str) -> bytes:
    """Return the next `length` bytes. Raises CorpusError where the file ends before.

    Memory grows with what is there, not with what a damaged file promises.
    """
    parts = list(_parts(stream, length, name))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def skip(stream: BinaryIO, length: int, name: str) -> None:
    """Skip the next `length` bytes. Raises CorpusError where the file ends before."""
    for _ in _parts(stream, length, name):
        pass


def _parts(stream: BinaryIO, length: int, name: str) -> Iterator[bytes]:
    while length:
        part = stream.read(min(length, _PIECE))
        if not part:
            raise CorpusError(f"{name} is truncated", "copy or write the file again")
        yield part
        length -= len(part)


class _Meter:
    """Counts the bytes that a decompressor reads from a file."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._count = self._told = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        try:
            part = self._stream.read(size)
        except OSError as error:
            reason = error.strerror or error
            raise CorpusError(f"cannot read {self._name}: {reason}", "check the file") from None
        self._count += len(part)
        return part

    def spent(self, length: int) -> int:
        """Return the bytes of the file read since the last call."""
        new = self._count - self._told
        self._told = self._count
        return new

    # pyarrow and io expect these methods of a file.
    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def _standard_input() -> BinaryIO:
    """Open standard input with its own buffer: the one that `sys` owns would block the exit of the
    program while a thread waits in it for input."""
    if sys.stdin is None:
        raise InputError("standard input is closed", "name a file, or pipe the corpus in")
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (AttributeError, ValueError, OSError):
        return sys.stdin.buffer  # replaced by an object without a file descriptor

"""Opens a corpus file as a stream of bytes: local, remote or standard input, decompressed.

Compression is detected by the first bytes and undone as a stream, so memory does not grow with the
file.

Every stream of a compressed file is read, and the bytes between and after them are checked: a
library's idea of where an archive ends is not trusted.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import pyarrow as pa

from engram_cli.corpus.base import CorpusFile
from engram_cli.corpus.stamps import local_file, unchanged
from engram_cli.corpus.storage import open_remote, remote_file
from engram_cli.corpus.text import as_many
from engram_cli.errors import CorpusError, InputError

# Text may begin with "BZh9": only with the block that follows is it bzip2.
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    **{b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)},
    **{b"BZh%d\x17\x72\x45\x38\x50\x90" % level: "bz2" for level in range(1, 10)},
}
_REFUSED = {
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"LZIP\x01": "lzip",
    b"\x89LZO\x00\r\n\x1a\n": "lzop",
    b"\x1f\x9d\x90": "compress",
    b"Rar!\x1a\x07": "rar",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
    **{bytes([version]) + b"\xb5\x2f\xfd": "zstd before 0.8" for version in range(0x22, 0x28)},
}
HEAD = 16  # bytes that tell the packing
# zstd and lz4 share the 16 magics of frames that are to be skipped; pzstd begins with one of 4
# bytes, behind which the magic of a frame of text is still within `HEAD`.
_SKIPPED = tuple(bytes([last]) + b"\x2a\x4d\x18" for last in range(0x50, 0x60))
_PACKED_PIECE = 2**16  # bytes of an archive read at a time
# What a decoder may take: xz -9 takes 65 MiB, and 128 MiB is the largest window that zstd reads
# unless it is asked to.
_MOST_MEMORY = 2**27
_XZ_PADDING = 4  # its padding is whole groups of so many zeros
_BEGIN = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00"}
_BUFFER = 2**18
_PIECE = 2**20  # bytes read at a time where a file says how long something is
Decompressed: TypeAlias = tuple[BinaryIO, Callable[[int], int]]


def compression_of(head: bytes) -> str | None:
    """Return how a file that begins with `head` is compressed: gzip, zstd, xz, bz2, or None.

    Three bytes of a magic that are all there is are a truncated archive.
    """
    head = _behind_skipped(head)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic) or (2 < len(head) < len(magic) and magic.startswith(head)):
            return kind
    # What lies behind a long frame is not known yet, but nothing else begins so.
    return "zstd" if head.startswith(_SKIPPED) else None


def archive(head: bytes) -> str | None:
    """Return the name of an archive that cannot be read as a stream of text."""
    head = _behind_skipped(head)
    return next((kind for magic, kind in _REFUSED.items() if head.startswith(magic)), None)


def _behind_skipped(head: bytes) -> bytes:
    """Return what follows the skippable frames at the beginning of `head`, as far as it shows."""
    while head.startswith(_SKIPPED) and len(head) >= 8:
        behind = head[8 + int.from_bytes(head[4:8], "little") :]
        if len(behind) < 4:
            break
        head = behind
    return head


class DecompressedStream(io.RawIOBase):
    """The decompressed bytes of a stream.

    Raises CorpusError for an archive that is truncated or damaged, is followed by something else,
    or takes too much memory.
    """

    def __init__(self, packed: Any, kind: str, name: str) -> None:
        """`packed`: a readable stream at the beginning of the archive; `name`: for messages."""
        self._kind = kind
        self._name = name
        self._inner: Any
        if kind == "zstd":  # pyarrow reads frame after frame, and skips those that are to be
            self._inner = pa.CompressedInputStream(pa.PythonFile(packed, "r"), kind)
        else:
            self._inner = _Streams(packed, kind)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._inner.read(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise self._wrong(error) from None
        buffer[: len(part)] = part
        return len(part)

    def _wrong(self, error: Exception) -> CorpusError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "too much memory" in reason or "Memory usage limit" in reason:
            unpack = "zstd -dc --long=31" if self._kind == "zstd" else f"{self._kind} -dc"
            return CorpusError(
                f"{self._name} takes more than {_MOST_MEMORY >> 20} MiB of memory to decompress: "
                "its window is that long",
                f"decompress it first, or pipe it: {unpack} FILE | engram hash-stats -",
            )
        if "Dictionary mismatch" in reason:
            return CorpusError(
                f"{self._name} was compressed with a zstd dictionary", "decompress it first"
            )
        return CorpusError(
            f"{self._name} is damaged or truncated: {self._kind} cannot decompress it ({reason})",
            "copy or compress the file again",
        )


class _Gzip:
    """One member of a gzip file, as bz2 and lzma have theirs."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, most)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)


_MAKERS = {"gzip": _Gzip, "bz2": bz2.BZ2Decompressor, "xz": _xz}


class _Streams:
    """The streams of a gzip, bzip2 or xz file one after the other; zeros may follow each."""

    def __init__(self, packed: BinaryIO, kind: str) -> None:
        self._packed = packed
        self._kind = kind
        self._held = b""  # read from the file, and not yet given to a decompressor
        self._taken = 0  # bytes read from the file
        self._make: Callable[[], Any] = _MAKERS[kind]
        self._stream: Any = self._make()

    def read(self, most: int) -> bytes:
        """Return the next bytes, b"" after the last stream. Raises what the libraries raise."""
        while self._stream is not None:
            over = False
            if self._stream.needs_input and not self._held:
                over = not self._fill()
            part: bytes = self._stream.decompress(self._held, most)
            self._held = b""
            if self._stream.eof:
                self._held = self._stream.unused_data
                self._stream = self._next()
            elif over and not part:
                raise EOFError("it ends inside a stream")
            if part:
                return part
        return b""

    def _fill(self) -> bool:
        """Read on; whether there was anything."""
        part = self._packed.read(_PACKED_PIECE)
        self._held += part
        self._taken += len(part)
        return bool(part)

    def _next(self) -> Any:
        """Return a decompressor for the next stream; None when only zeros are left."""
        zeros = 0
        while True:
            kept = self._held.lstrip(b"\0")
            zeros += len(self._held) - len(kept)
            self._held = kept
            if kept or not self._fill():
                break
        if self._kind == "xz" and zeros % _XZ_PADDING:
            raise EOFError(f"{zeros:,} zeros follow a stream, not a multiple of {_XZ_PADDING}")
        if not self._held:
            return None
        magic = _BEGIN[self._kind]
        while len(self._held) < len(magic) and self._fill():
            pass
        if not self._held.startswith(magic):
            at = self._taken - len(self._held)
            raise EOFError(f"byte {at:,} follows the last stream and does not begin a new one")
        return self._make()


@contextmanager
def opened(file: CorpusFile) -> Iterator[BinaryIO]:
    """Open `file` without decompressing it; system errors become CorpusError.

    Raises CorpusError where a local file is not the one that was planned, or changes until the end.
    """
    try:
        if file.url is not None:
            with open_remote(file.url) as stream:
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
        return remote_file(f"{file.url.rpartition('/')[0]}/{name}", file.format)
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

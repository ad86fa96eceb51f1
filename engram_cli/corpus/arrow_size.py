"""Finds what the record batches of an Arrow file take unpacked, from their headers alone.

pyarrow unpacks a batch as a whole: a file of some kilobytes may hold one of gigabytes. Read are the
messages of the IPC format, as far as they name their buffers (Message.fbs, FlatBuffers).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from engram_cli.corpus.base import CorpusFile
from engram_cli.errors import CorpusError

_LARGE = 2**28  # bytes of a batch, that may be any
_RATIO = 32  # of what a larger one takes packed: text is packed to a third or a tenth
_CONTINUED = b"\xff\xff\xff\xff"
_DICTIONARY, _BATCH = 2, 3
_MOST_HEADER = 2**26


def check_batches(file: CorpusFile, stream: BinaryIO, begin: int) -> None:
    """Raise CorpusError for a batch that unpacks to far more than it takes in the file.

    `begin`: where the first message is. What is no message ends the search: pyarrow will say so.
    """
    stream.seek(begin)
    try:
        while (prefix := stream.read(8))[:4] == _CONTINUED:
            length = int.from_bytes(prefix[4:], "little", signed=True)
            if not 0 < length <= _MOST_HEADER:
                return
            buffers, body = _buffers(stream.read(length))
            at = stream.tell()
            unpacked = sum(_unpacked(stream, at + offset, size) for offset, size in buffers)
            if unpacked > max(_LARGE, _RATIO * body):
                raise CorpusError(
                    f"{file.name}: a record batch of {body:,} bytes decompresses to {unpacked:,}",
                    "write it again in smaller record batches",
                )
            stream.seek(at + body)
    except (struct.error, ValueError, OSError):
        return


def _unpacked(stream: BinaryIO, at: int, size: int) -> int:
    """What a buffer says of itself; -1 stands for one that is not packed."""
    if size < 8:
        return 0
    stream.seek(at)
    return max(int(struct.unpack("<q", stream.read(8))[0]), 0)


def _buffers(message: bytes) -> tuple[list[tuple[int, int]], int]:
    """The places and sizes of the packed buffers in a message's body, and the size of the body."""
    root = _Table(message, int(struct.unpack_from("<I", message)[0]))
    body = root.scalar(3, "<q")
    if body < 0:
        raise ValueError("a body of less than no bytes")
    kind = root.scalar(1, "<B")
    if kind not in (_DICTIONARY, _BATCH):
        return [], body
    batch = root.table(2)
    if kind == _DICTIONARY:
        batch = batch.table(1)
    if not batch.place(3):  # not packed
        return [], body
    begin = batch.follow(2)
    (count,) = struct.unpack_from("<I", message, begin)
    if 16 * count > len(message):
        raise ValueError("more buffers than there is room for")
    return [struct.unpack_from("<qq", message, begin + 4 + 16 * at) for at in range(count)], body


class _Table:
    """A table of FlatBuffers: its fields by their numbers."""

    def __init__(self, message: bytes, at: int) -> None:
        self._message = message
        self._at = at
        self._fields = at - int(struct.unpack_from("<i", message, at)[0])
        if self._fields < 0:
            raise ValueError("a table outside of the message")

    def place(self, number: int) -> int:
        """Where a field is, 0 where it is left out."""
        (size,) = struct.unpack_from("<H", self._message, self._fields)
        if 4 + 2 * number >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self._message, self._fields + 4 + 2 * number)
        return self._at + offset if offset else 0

    def scalar(self, number: int, kind: str) -> int:
        """The value of a field, 0 where it is left out."""
        place = self.place(number)
        return int(struct.unpack_from(kind, self._message, place)[0]) if place else 0

    def follow(self, number: int) -> int:
        """Where the table or vector is that a field points to."""
        place = self.place(number)
        if not place:
            raise ValueError("a field is missing")
        return place + int(struct.unpack_from("<I", self._message, place)[0])

    def table(self, number: int) -> _Table:
        """The table that a field points to."""
        return _Table(self._message, self.follow(number))

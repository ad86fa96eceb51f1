"""Reads NumPy arrays of token ids: one dimension is a document, of two each line is one.

The file is read in pieces, not mapped: a mapped corpus would count as our memory, and a file that
shrinks while it is read would kill the process.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from tokenize import TokenError
from typing import BinaryIO

import numpy as np

from engram_cli.corpus.base import (
    BLOCK_TOKENS,
    CorpusFile,
    CorpusOptions,
    Reader,
    Signs,
    TokenBlock,
    never_text,
)
from engram_cli.corpus.byte_stream import exactly, opened
from engram_cli.corpus.partitions import sections
from engram_cli.errors import CorpusError

_MOST_COLUMNS = 2**20  # of an array stored by column: a line is read in so many pieces
_MOST_HEADER = 2**14  # bytes; numpy parses no more than 10,000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What a .npy file says about itself; `begin` is the byte where its items begin."""

    dtype: np.dtype[np.integer]
    shape: tuple[int, ...]
    fortran: bool
    begin: int

    @property
    def line(self) -> int:
        """Return the tokens of a document."""
        return self.shape[-1]

    @property
    def lines(self) -> int:
        """Return the number of documents."""
        return self.shape[0] if len(self.shape) == 2 else 1


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[TokenBlock]:
    """Yield the token ids of a .npy file in blocks. Raises CorpusError."""
    with opened(file) as stream:
        header = _read_header(stream, file)
        if header.fortran and len(header.shape) == 2:
            yield from _column_major(file, header, stream)
            return
        lines = file.units(header.lines, "lines")
        first, last = lines.start * header.line, lines.stop * header.line
        if first:
            stream.seek(header.begin + first * header.dtype.itemsize)
        for begin in range(first, last, BLOCK_TOKENS):
            count = min(BLOCK_TOKENS, last - begin)
            raw = exactly(stream, count * header.dtype.itemsize, file.name)
            yield _block(file, header, np.frombuffer(raw, header.dtype), begin)


def check(file: CorpusFile, options: CorpusOptions) -> None:
    """Raise CorpusError for a header that promises no token ids, or more than there are."""
    with opened(file) as stream:
        _read_header(stream, file)


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """Divide the file into sections of whole lines; an array of one dimension is one document."""
    with opened(file) as stream:
        header = _read_header(stream, file)
    width = header.line * header.dtype.itemsize
    if len(header.shape) == 1 or header.fortran or not width:
        return (file,)
    bounds = [*range(0, header.lines, max(size // width, 1)), header.lines]
    return sections(file, bounds, [0, *(header.begin + width * at for at in bounds[1:])])


def _read_header(stream: BinaryIO, file: CorpusFile) -> _Header:
    """Return the checked header of a .npy file; it is parsed, never unpickled."""
    # numpy reads as much as the header says that it is long.
    head = io.BytesIO(stream.read(_MOST_HEADER))
    try:
        version = np.lib.format.read_magic(head)
        parse = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = parse(head)
    except (ValueError, EOFError, SyntaxError, TokenError) as error:
        raise CorpusError(
            f"{file.name} is not a .npy file: {str(error).splitlines()[0]}",
            "save the token ids with numpy.save",
        ) from None
    if dtype.hasobject:
        raise CorpusError(
            f"{file.name} holds pickled objects, which are never loaded",
            "save the token ids as an array of integers",
        )
    if dtype.kind not in "iu":
        raise CorpusError(
            f"{file.name} holds {dtype}, not token ids", "save the token ids as integers"
        )
    if len(shape) not in (1, 2) or any(size < 0 for size in shape):
        raise CorpusError(f"{file.name} has the shape {shape}", "save token ids as [T] or [B, T]")
    header = _Header(dtype=dtype, shape=shape, fortran=fortran, begin=head.tell())
    stream.seek(header.begin)
    wanted = header.begin + math.prod(shape) * dtype.itemsize
    if file.section is None and file.size is not None and file.size < wanted:
        raise CorpusError(
            f"{file.name} is truncated: {file.size:,} bytes, its header promises {wanted:,}",
            "copy or write the file again",
        )
    return header


def _block(file: CorpusFile, header: _Header, ids: np.ndarray, begin: int) -> TokenBlock:
    starts = np.zeros(len(ids), dtype=np.bool_)
    starts[-begin % header.line :: header.line] = True
    locate = partial(_locate, file.name, header, begin)
    return TokenBlock(ids=ids, starts=starts, size=ids.nbytes, locate=locate)


def _locate(name: str, header: _Header, begin: int, index: int) -> str:
    document, position = divmod(begin + index, header.line)
    line = f", line {document}" if len(header.shape) == 2 else ""
    return f"{name}{line}, position {position}"


def _column_major(file: CorpusFile, header: _Header, stream: BinaryIO) -> Iterator[TokenBlock]:
    """Read an array that is stored by column: a part of each column for some lines at a time."""
    if file.path is None or header.line > _MOST_COLUMNS:
        raise CorpusError(
            f"{file.name} is stored by column, which cannot be read "
            + ("remotely" if file.path is None else f"where a line has {header.line:,} ids"),
            "copy the file here, or save it by line (numpy.ascontiguousarray)",
        )
    count, width = header.shape[0], header.dtype.itemsize
    lines = max(BLOCK_TOKENS // max(header.line, 1), 1)
    for first in range(0, count if header.line else 0, lines):
        part = min(lines, count - first)
        ids = np.empty((part, header.line), header.dtype)
        for column in range(header.line):
            stream.seek(header.begin + (column * count + first) * width)
            ids[:, column] = np.frombuffer(exactly(stream, part * width, file.name), header.dtype)
        yield _block(file, header, ids.reshape(-1), first * header.line)


READER = Reader(
    read=read,
    gives_text=never_text,
    check=check,
    divide=divide,
    signs=Signs(magic=(b"\x93NUMPY",), suffixes=(".npy",)),
)

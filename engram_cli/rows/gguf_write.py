"""Rewrites the header of a GGUF file and copies its tensors, which are not read into the process.

What is not changed keeps its bytes: keys, entries of tensors, and all data, also of ggml types that
are not known here. The new data begins where the old did within 64 KiB, so that the copy is one of
whole blocks, and a file system with reflinks need not move a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, EngramError
from engram_cli.outputs import Kind, Listing
from engram_cli.rows.copying import GRAIN, Extent
from engram_cli.rows.gguf_file import GgufHeader, TensorEntry, read_header

PADDING = "engram_tables.padding"  # a string of spaces; also the mark of files written here
_TYPES = {"<u2": 2, "<u4": 4, "<i4": 5, "<u8": 10, "<i8": 11, "<f4": 6}
_STRING, _UINT32, _ARRAY = 8, 4, 9
_HINT = "the file is damaged or was not downloaded whole: take it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A new header, and where the data of the old file goes."""

    header: bytes
    extents: tuple[Extent, ...]

    @property
    def size(self) -> int:
        """Bytes of the new file."""
        last = self.extents[-1] if self.extents else None
        return len(self.header) if last is None else last.to + last.size


def rewritten(
    old: GgufHeader, keys: Mapping[str, Any], tensors: Mapping[str, str | None]
) -> Rewritten:
    """Return the header with other keys and tensors.

    `keys`: new values (int for u32, text, or an array of integers), None to leave a key out.
    `tensors`: new names, None to leave a tensor out. Raises ArtifactError for tensors that overlap
    or lie past the end of the file, InputError for a file that cannot be read.
    """
    with old.path.open("rb") as file:
        raw = file.read(old.end)
    size = old.path.stat().st_size
    kept = [each for each in old.tensors if tensors.get(each.name, "") is not None]
    extents, moved = _extents(old, kept, size)
    entries = b"".join(_entry(raw, each, tensors.get(each.name), moved[each.name]) for each in kept)
    changed = {**keys, PADDING: ""}
    parts = []
    for name, (begin, end) in old.spans.items():
        if name not in changed:
            parts.append(raw[begin:end])
        elif name != PADDING and keys[name] is not None:
            parts.append(encode_key(name, keys[name]))
    new = [name for name, value in keys.items() if name not in old.spans and value is not None]
    parts += [encode_key(name, keys[name]) for name in new]
    start = raw[:8] + len(kept).to_bytes(8, "little") + (len(parts) + 1).to_bytes(8, "little")
    bare = len(encode_key(PADDING, ""))
    rest = len(start) + sum(map(len, parts)) + bare + len(entries)
    padding = " " * ((old.data - rest) % GRAIN)
    header = start + b"".join(parts) + encode_key(PADDING, padding) + entries
    header += bytes(-len(header) % old.alignment)
    placed = [
        Extent(begin=each.begin, size=each.size, to=len(header) + each.to) for each in extents
    ]
    return Rewritten(header=header, extents=tuple(placed))


def encode_key(name: str, value: Any) -> bytes:
    """Return a key with its value: int as u32, text as a string, an array [n] of integers.

    A NumPy integer keeps its type.
    """
    head = _text(name)
    if isinstance(value, np.integer):
        kind = _TYPES[value.dtype.newbyteorder("<").str]
        return head + kind.to_bytes(4, "little") + value.tobytes()
    if isinstance(value, str):
        return head + _STRING.to_bytes(4, "little") + _text(value)
    if isinstance(value, int):
        return head + _UINT32.to_bytes(4, "little") + value.to_bytes(4, "little")
    kind = _TYPES[value.dtype.newbyteorder("<").str]
    head += _ARRAY.to_bytes(4, "little") + kind.to_bytes(4, "little")
    return head + len(value).to_bytes(8, "little") + np.ascontiguousarray(value).tobytes()


def encode_entry(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """Return the entry of a tensor; `dims` have the values of a row first."""
    raw = _text(name) + len(dims).to_bytes(4, "little")
    raw += b"".join(int(dim).to_bytes(8, "little") for dim in dims)
    return raw + kind.to_bytes(4, "little") + offset.to_bytes(8, "little")


def _text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(8, "little") + raw


def _entry(raw: bytes, each: TensorEntry, name: str | None, offset: int) -> bytes:
    """Return the entry of a tensor, with a new name if one is given, and its new offset."""
    begin, end = each.span
    if not name:
        return raw[begin : end - 8] + offset.to_bytes(8, "little")
    behind_name = begin + 8 + int.from_bytes(raw[begin : begin + 8], "little")
    return _text(name) + raw[behind_name : end - 8] + offset.to_bytes(8, "little")


def _extents(
    old: GgufHeader, kept: list[TensorEntry], size: int
) -> tuple[list[Extent], dict[str, int]]:
    """Return what is copied, `to` counted from the new data's begin, and the new offsets.

    A tensor reaches to where the next one begins, whatever its type.
    """
    if len(kept) == len(old.tensors):
        whole = Extent(begin=old.data, size=max(0, size - old.data), to=0)
        return [whole] if whole.size else [], {each.name: each.offset for each in kept}
    starts = sorted({each.offset for each in old.tensors})
    if len(starts) != len(old.tensors) or starts[-1] + old.data > size:
        raise ArtifactError(f"{old.path}: tensors overlap or lie past the end", _HINT)
    ends = dict(pairwise([*starts, size - old.data]))
    extents, moved, at = [], {}, 0
    for each in sorted(kept, key=lambda each: each.offset):
        length = ends[each.offset] - each.offset
        extents.append(Extent(begin=old.data + each.offset, size=length, to=at))
        moved[each.name] = at
        at += -(-length // old.alignment) * old.alignment
    return extents, moved


def _listing(path: Path) -> Listing | None:
    try:
        return Listing() if PADDING in read_header(path).keys else None
    except EngramError:
        return None


GGUF = Kind(name="GGUF file written by engram", listing=_listing, folder=False)

"""The header of a GGUF file: its keys, and where its tensors are.

Read by hand because files are untrusted, and because opening one must not cost what its token list
does: every count and offset is checked against the file before it is used, and the strings of an
array are skipped. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.remote.path import Prefix, is_remote

MAGIC = b"GGUF"
_MOST_KEYS, _MOST_TENSORS, _MOST_AXES = 2**16, 2**20, 4
_MOST_TEXT, _MOST_ITEMS = 2**24, 2**26
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
# ggml's types: their name here, values in a block, bytes of a block.
GGML_TYPES = {
    0: ("float32", 1, 4),
    1: ("float16", 1, 2),
    2: ("q4_0", 32, 18),
    8: ("q8_0", 32, 34),
    12: ("q4_k", 256, 144),
    14: ("q6_k", 256, 210),
    24: ("int8", 1, 1),
    26: ("int32", 1, 4),
    27: ("int64", 1, 8),
    30: ("bfloat16", 1, 2),
}
SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_HINT = "the file is damaged or was not downloaded whole: take it again"


@dataclass(frozen=True, slots=True)
class Strings:
    """An array of strings that was skipped: how many there are."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor as a header names it: `dims` with the values of a row first, ggml's type number.

    `span`: the bytes of the entry in the file. `offset`: of its data, from the header's `data` on.
    """

    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int
    span: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """The header of one file. `spans`: the bytes of each key with its name, type and value.

    `end`: of the header; `data`: where the tensors begin, a multiple of `alignment`.
    """

    path: Path
    version: int
    keys: Mapping[str, Any]
    spans: Mapping[str, tuple[int, int]]
    tensors: tuple[TensorEntry, ...]
    alignment: int
    end: int
    data: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A tensor: `shape` with the rows first; `type` is a name of `GGML_TYPES`, else "type 17".

    `nbytes` is None for a type that is not known here.
    """

    file: Path
    name: str
    type: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """The keys of a GGUF file and the tensors of all its parts.

    Arrays of numbers are NumPy arrays, arrays of strings `Strings`. `short`: parts that end before
    their tensors do. `header_bytes`: what was read.
    """

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    parts: tuple[Path, ...]
    missing: tuple[str, ...]
    short: tuple[str, ...]
    header_bytes: int


def read_gguf(path: Path) -> GgufFile:
    """Read the headers of a GGUF file and of its other parts, where it is one of several.

    Raises InputError for a file that cannot be read, ArtifactError for one that is damaged.
    """
    parts, missing = _parts(path)
    keys: dict[str, Any] = {}
    tensors: dict[str, GgufTensor] = {}
    short, size = [], 0
    for part in parts:
        header = read_header(part)
        own = _tensors(header)
        keys = {**header.keys, **keys}
        for name, tensor in own.items():
            if name in tensors:
                raise ArtifactError(f"{part} has a second tensor {name}", _HINT)
            tensors[name] = tensor
        available = part.stat().st_size
        if any(t.begin + (t.nbytes or 0) > available for t in own.values()):
            short.append(part.name)
        size += header.end
    return GgufFile(
        path=path,
        keys=keys,
        tensors=tensors,
        parts=tuple(parts),
        missing=tuple(missing),
        short=tuple(short),
        header_bytes=size,
    )


def _parts(path: Path) -> tuple[list[Path], list[str]]:
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path], []
    stem, _, count = match.groups()
    names = [f"{stem}-{i + 1:05}-of-{count}.gguf" for i in range(min(int(count), 9999))]
    there = [path.with_name(name) for name in names if path.with_name(name).is_file()]
    return there, [name for name in names if not path.with_name(name).is_file()]


class _Cursor:
    """Reads numbers and texts from a file, mapped or read as it is used, never past its end."""

    def __init__(self, raw: mmap.mmap | Prefix, path: Path) -> None:
        self.raw, self.path, self.at = raw, path, 0

    def take(self, size: int) -> int:
        """Advance by `size` bytes; return where they begin. Raises ArtifactError."""
        begin = self.at
        if not 0 <= size <= len(self.raw) - begin:
            raise ArtifactError(f"{self.path} ends within its header", _HINT)
        self.at += size
        return begin

    def number(self, form: str) -> Any:
        """Return one number."""
        size = struct.calcsize(form)
        begin = self.take(size)
        return struct.unpack(form, self.raw[begin : begin + size])[0]

    def count(self, most: int, what: str) -> int:
        """Return a count of at most `most`. Raises ArtifactError for a larger one."""
        value = int(self.number("<Q"))
        if value > most:
            raise ArtifactError(f"{self.path} claims {value:,} {what}", _HINT)
        return value

    def text(self) -> str:
        """Return a string."""
        size = self.count(_MOST_TEXT, "bytes of text")
        begin = self.take(size)
        return self.raw[begin : begin + size].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return the value of a key."""
        if kind == _STRING:
            return self.text()
        if kind == _BOOL:
            return bool(self.number("<B"))
        if kind == _ARRAY:
            return self._array()
        return self._scalars(kind, 1)[0].item()

    def _array(self) -> Any:
        kind = int(self.number("<I"))
        count = self.count(_MOST_ITEMS, "items of an array")
        if kind != _STRING:
            return self._scalars(kind, count)
        self.take(0)
        for _ in range(count):
            self.take(self.count(_MOST_TEXT, "bytes of text"))
        return Strings(count)

    def _scalars(self, kind: int, count: int) -> Any:
        if kind not in _SCALARS:
            raise ArtifactError(f"{self.path} has a value of type {kind}", _HINT)
        dtype = np.dtype(_SCALARS[kind])
        begin = self.take(count * dtype.itemsize)
        return np.frombuffer(self.raw[begin : begin + count * dtype.itemsize], dtype)


def read_header(path: Path) -> GgufHeader:
    """Read the header of one file.

    Raises InputError for a file that cannot be read, ArtifactError for one that is damaged.
    """
    try:
        if is_remote(path):
            return _read_header(_Cursor(path.prefix(), path))
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
        ):
            return _read_header(_Cursor(raw, path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
    except ValueError as error:  # an empty file cannot be mapped
        raise ArtifactError(f"{path} is no GGUF file: {error}", _HINT) from None


def _read_header(cursor: _Cursor) -> GgufHeader:
    path = cursor.path
    begin = cursor.take(4)
    version = int(cursor.number("<I"))
    if cursor.raw[begin : begin + 4] != MAGIC or version not in (2, 3):
        raise ArtifactError(f"{path} is no GGUF file of version 2 or 3", _HINT)
    tensor_count = cursor.count(_MOST_TENSORS, "tensors")
    key_count = cursor.count(_MOST_KEYS, "keys")
    keys: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        begin = cursor.at
        key = cursor.text()
        if key in keys:
            raise ArtifactError(f"{path} has the key {key} twice", _HINT)
        keys[key] = cursor.value(int(cursor.number("<I")))
        spans[key] = begin, cursor.at
    found = []
    for _ in range(tensor_count):
        begin = cursor.at
        name = cursor.text()
        axes = int(cursor.number("<I"))
        if not 0 < axes <= _MOST_AXES:
            raise ArtifactError(f"{path}: tensor {name} has {axes} axes", _HINT)
        dims = tuple(int(cursor.number("<Q")) for _ in range(axes))
        kind, offset = int(cursor.number("<I")), int(cursor.number("<Q"))
        span = begin, cursor.at
        found.append(TensorEntry(name=name, dims=dims, kind=kind, offset=offset, span=span))
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & alignment - 1:
        raise ArtifactError(f"{path} has an alignment of {alignment!r}", _HINT)
    return GgufHeader(
        path=path,
        version=version,
        keys=keys,
        spans=spans,
        tensors=tuple(found),
        alignment=alignment,
        end=cursor.at,
        data=-(-cursor.at // alignment) * alignment,
    )


def _tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """Return the tensors of a header by name. Raises ArtifactError for one that cannot be."""
    found: dict[str, GgufTensor] = {}
    for each in header.tensors:
        if each.name in found:
            raise ArtifactError(f"{header.path} has the tensor {each.name} twice", _HINT)
        begin = header.data + each.offset
        found[each.name] = _tensor(header.path, each.name, each.dims, each.kind, begin)
    for one, other in pairwise(sorted(found.values(), key=lambda tensor: tensor.begin)):
        if one.begin + (one.nbytes or 0) > other.begin:
            raise ArtifactError(f"{header.path}: {one.name} and {other.name} overlap", _HINT)
    return found


def _tensor(path: Path, name: str, dims: tuple[int, ...], kind: int, begin: int) -> GgufTensor:
    """Return a tensor of the header; `dims` has the values of a row first."""
    label, values, size = GGML_TYPES.get(kind, (f"type {kind}", 1, 0))
    if prod(dims) >= 2**56 or begin >= 2**62:
        raise ArtifactError(f"{path}: tensor {name} has {dims} values", _HINT)
    if dims[0] % values:
        raise ArtifactError(f"{path}: rows of {name} are no whole blocks of {label}", _HINT)
    return GgufTensor(
        file=path,
        name=name,
        type=label,
        shape=dims[::-1],
        begin=begin,
        nbytes=prod(dims) // values * size if size else None,
    )

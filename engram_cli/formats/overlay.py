"""Row overlays: edited rows of a released table, `.pleo` and `.plepatch`.

An overlay replaces some rows of a table that it only names, so it has no layer that a look-up could
read. Both kinds are little-endian: a header, then row numbers and values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import parse_json
from engram_cli.formats.base import PIECE_BYTES, Checks, Facts, Format
from engram_cli.formats.model_folder import DAMAGED, Check, compared
from engram_cli.hashing.layout import rows_alone
from engram_cli.numbers import counted
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.gguf_file import GGML_TYPES
from engram_cli.rows.source import Span

_PLEO, _PLEPATCH = b"PLEO", b"PLEOVLY1"
PLEO_HEADER = struct.Struct("<4sII")
PLEPATCH_HEADER = struct.Struct("<8sH2xIQQQQ8x72s")
VERSION = 1
MANIFEST = "ple-overlay-v1"
_MOST_MANIFEST, _MOST_ROW_BYTES = 2**24, 2**24
_SHOWN = 8  # entries of a manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay(FileRows):
    """An opened overlay; `layers` is () since its rows belong to another file's table.

    `count` rows of `width` values as `stored_as`, the row numbers from byte `numbers` on and the
    values from byte `values` on; each `step` bytes from one to the next.
    """

    dialect: str
    checks: tuple[Check, ...]
    count: int
    width: int
    stored_as: str
    row_bytes: int
    numbers: tuple[int, int, str]
    values: tuple[int, int]
    tensor: str | None = None
    manifest: Mapping[str, Any] | None = None

    def row_numbers(self) -> NDArray[Any]:
        """Return the row numbers [n]. Raises ArtifactError for a file that is short."""
        begin, step, dtype = self.numbers
        array = self._spaced(begin, step, np.dtype(dtype), ())
        return np.concatenate([numbers for _, numbers in array.chunks()])

    def stored_rows(self) -> NDArray[np.uint8]:
        """Return the rows as stored: uint8[n, bytes of a row]. Raises as `row_numbers`."""
        begin, step = self.values
        array = self._spaced(begin, step, np.dtype("u1"), (self.row_bytes,))
        return np.concatenate([rows for _, rows in array.chunks()])

    def pieces(self) -> Iterator[NDArray[np.float32] | None]:
        """Yield the values float32[n, width] in pieces; None where their type is not decoded."""
        begin, step = self.values
        stored = self._spaced(begin, step, np.dtype("u1"), (self.row_bytes,))
        row_type = DTYPES.load(self.stored_as) if self.stored_as in DTYPES else None
        if row_type is None or row_type.scaling is not None:
            yield None
            return
        size = max(1, PIECE_BYTES // (4 * self.width))
        for first in range(0, self.count, size):
            piece = stored.read(first, min(size, self.count - first))
            values = np.empty((len(piece), self.width), dtype=np.float32)
            row_type.decode(np.ascontiguousarray(piece).view(row_type.physical), None, values)
            yield values

    def _spaced(
        self, begin: int, step: int, dtype: np.dtype[Any], tail: tuple[int, ...]
    ) -> FileArray:
        if self.path.stat().st_size < self.values[0] + self._last_byte():
            raise ArtifactError(f"{self.path} ends before its rows do", DAMAGED)
        span = Span(file=self.path, begin=begin, first=0, rows=self.count, stride=step)
        return FileArray([span], dtype, tail, DAMAGED)

    def _last_byte(self) -> int:
        return (self.count - 1) * self.values[1] + self.row_bytes


def _recognise(path: Path) -> Path | None:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return None
    is_short = start[:4] == _PLEO and start != _PLEPATCH and path.suffix == ".pleo"
    return path if is_short or start == _PLEPATCH else None


def _open(path: Path, tokenizer: Path | None = None) -> Overlay:
    try:
        with path.open("rb") as file:
            start = file.read(PLEPATCH_HEADER.size)
            if start[:8] != _PLEPATCH:
                return _pleo(path, start)
            return _plepatch(path, start, file.read(_manifest_size(path, start)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None


def _pleo(path: Path, start: bytes) -> Overlay:
    """Open a .pleo: a magic, n and dim as u32, n row numbers as i32, n x dim float32."""
    if len(start) < PLEO_HEADER.size or start[:4] != _PLEO:
        raise ArtifactError(f"{path} is no overlay", DAMAGED)
    _, count, dim = PLEO_HEADER.unpack(start[: PLEO_HEADER.size])
    begin, row_bytes = PLEO_HEADER.size, 4 * dim
    _require_rows(path, count, dim, row_bytes)
    return Overlay(
        format="overlay",
        path=path,
        layout=rows_alone(2),
        layers=(),
        dialect="PLEO",
        checks=(_size_check(path, begin + count * (4 + row_bytes)),),
        count=count,
        width=dim,
        stored_as="float32",
        row_bytes=row_bytes,
        numbers=(begin, 4, "<i4"),
        values=(begin + 4 * count, row_bytes),
    )


def _manifest_size(path: Path, start: bytes) -> int:
    if len(start) < PLEPATCH_HEADER.size:
        raise ArtifactError(f"{path} ends within its header", DAMAGED)
    size = int(PLEPATCH_HEADER.unpack(start)[6])
    if size > min(_MOST_MANIFEST, path.stat().st_size - PLEPATCH_HEADER.size):
        raise ArtifactError(f"{path} names a manifest of {size:,} bytes", DAMAGED)
    return size


def _plepatch(path: Path, start: bytes, text: bytes) -> Overlay:
    """Open a .plepatch: a header of 128 bytes, a manifest, then (u64 row, payload) n times."""
    _, version, kind, dim, row_bytes, count, size, name = PLEPATCH_HEADER.unpack(start)
    _require_rows(path, count, dim, row_bytes)
    stored_as, values, block = GGML_TYPES.get(kind, (f"ggml type {kind}", 0, 0))
    expected = dim // values * block if values and dim % values == 0 else None
    if values and row_bytes != expected:
        raise ArtifactError(
            f"{path}: {row_bytes:,} bytes a row of {dim:,} x {stored_as}, not {expected}", DAMAGED
        )
    try:
        manifest = parse_json(text)
    except ValueError:
        manifest = None
    named = manifest.get("format") if isinstance(manifest, Mapping) else "not readable"
    begin, step = PLEPATCH_HEADER.size + size, 8 + row_bytes
    return Overlay(
        format="overlay",
        path=path,
        layout=rows_alone(2),
        layers=(),
        dialect=_PLEPATCH.decode(),
        checks=(
            compared("version", version, VERSION),
            compared("format of the manifest", f"{named}"[:64], MANIFEST),
            _size_check(path, begin + count * step),
        ),
        count=count,
        width=dim,
        stored_as=stored_as,
        row_bytes=row_bytes,
        numbers=(begin, step, "<u8"),
        values=(begin + 8, step),
        tensor=name.rstrip(b"\0").decode("utf-8", "replace"),
        manifest=manifest if isinstance(manifest, Mapping) else None,
    )


def _require_rows(path: Path, count: int, dim: int, row_bytes: int) -> None:
    if not (count and dim and 0 < row_bytes <= _MOST_ROW_BYTES and dim <= 8 * row_bytes):
        raise ArtifactError(
            f"{path} names {count:,} rows of {dim:,} values in {row_bytes:,} bytes", DAMAGED
        )


def _size_check(path: Path, expected: int) -> Check:
    return compared("bytes of the file", path.stat().st_size, expected)


def _facts(source: Overlay) -> Facts:
    facts = [
        ("dialect", source.dialect),
        ("rows", f"{source.count:,} of {source.width:,} x {source.stored_as}"),
        ("base tensor", source.tensor or "not named"),
    ]
    for key, value in list((source.manifest or {}).items())[:_SHOWN]:
        facts.append((f"manifest: {key}"[:64], f"{value}"[:64]))
    return facts


def _check(path: Path, checks: Checks) -> None:
    """Check the sizes, then read all rows once: numbers below 0, rows named twice, NaN."""
    source = _open(path)
    checks.files, checks.stored_bytes = 1, path.stat().st_size
    checks.take_compared(source.checks)
    if any(each.name.startswith("bytes") and each.result == "differs" for each in source.checks):
        return
    try:
        numbers = source.row_numbers()
        ascending = np.sort(numbers)
        twice = ascending[1:][ascending[1:] == ascending[:-1]]
        negative = int(np.count_nonzero(numbers.astype(np.int64) < 0))
        problems = (
            [f"named again: {counted(len(twice), 'row')}, such as {twice[0]:,}"]
            if len(twice)
            else []
        )
        problems += [f"below 0 or past 2^63: {counted(negative, 'row number')}"] if negative else []
        checks.take("row numbers", problems)
        bad = 0
        for values in source.pieces():
            if values is None:
                checks.not_checked.append(f"values: {source.stored_as} is not decoded here")
                return
            bad += int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
        line = f"values that are not finite: in {counted(bad, 'row')}"
        checks.take("values", [line] if bad else [])
    except (OSError, EngramError) as error:
        checks.problems.append(f"{path}: {error}")


FORMAT = Format(
    name="overlay", recognise=_recognise, open=_open, facts=_facts, check=_check, foreign=True
)

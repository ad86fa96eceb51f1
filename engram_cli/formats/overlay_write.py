"""Writes overlays: a range of rows, or the rows that differ from those of another table.

.pleo holds float32, .plepatch the rows as they are stored.
Which rows differ is not known before both tables are read, so their numbers wait in a file without
a name, which goes with the process. An overlay that was interrupted starts over.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError
from engram_cli.files import output_errors
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Target, WriteOptions, Written, require_agreement
from engram_cli.formats.overlay import (
    FORMAT,
    MANIFEST,
    PLEO_HEADER,
    PLEPATCH_HEADER,
    VERSION,
    Overlay,
)
from engram_cli.formats.overlay_copy import copy_overlay
from engram_cli.outputs import Kind, Listing, new_file, prepare_output
from engram_cli.progress import Progress
from engram_cli.remote.locate import locate
from engram_cli.rows import DTYPES
from engram_cli.rows.gguf_file import GGML_TYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import PIECE_BYTES, layer_scale, sampled_digest, stored_reader
from engram_cli.table.build import free_bytes

WRITTEN_BY = "engram-tables"
GGML_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
# Rows with scales of their own are bytes to ggml, as in a GGUF file of V4.1 with rows of 264.
BYTES = ("fp8_e8m0", "e8m0_e4m3")
PLAIN = ("float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_k", "q6_k")
_CLOSE = 16  # rows that are read for one that is wanted
_SCANNED = 2**18  # values compared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edits:
    """Rows of a layer to write, ascending: `count` numbers in `listed`, or from `first` on."""

    source: RowSource
    layer: int
    count: int
    first: int = 0
    listed: IO[bytes] | None = None

    def numbers(self, at: int, count: int) -> NDArray[np.int64]:
        """Return `count` row numbers from the `at`-th one on."""
        if self.listed is None:
            return np.arange(self.first + at, self.first + at + count, dtype=np.int64)
        self.listed.seek(8 * at)
        return np.frombuffer(self.listed.read(8 * count), dtype=np.int64)

    def pieces(self, row_bytes: int) -> Iterator[NDArray[np.int64]]:
        """Yield the row numbers in pieces whose rows have about a megabyte."""
        step = max(1, PIECE_BYTES // (row_bytes + 8))
        for at in range(0, self.count, step):
            yield self.numbers(at, min(step, self.count - at))


def _write(kind: str, source: RowSource, out: Path, options: WriteOptions) -> Written:
    if out.suffix != f".{kind}":
        raise InputError(f"{out.name} does not end in .{kind}", "give another --out")
    if isinstance(source, Overlay):
        return copy_overlay(kind, source, out, options, (OVERLAY_KINDS[kind], REPLACED_KINDS[kind]))
    layer = _require_layer(source)
    with tempfile.TemporaryFile() as listed:
        base = None if options.patch is None else _base(source, layer, options)
        edits = _edits(source, layer, base, listed, options)
        head, row_bytes = _header(kind, edits, base)
        size = len(head) + edits.count * (row_bytes + (4 if kind == "pleo" else 8))
        done = Written(
            dialect=kind,
            files=(out.name,),
            size=size,
            notes=(
                f"{edits.count:,} of {source.layout.layer(layer).rows:,} rows of layer {layer}",
            ),
        )
        if options.check:
            return done
        prepare_output(
            out, REPLACED_KINDS[kind], force=options.force, inputs=(source.path, options.patch)
        )
        if size > free_bytes(out):
            raise InputError(f"{out} needs {size:,} bytes", "free some, or write to another disk")
        chunks = partial(_chunks, kind, edits, head, row_bytes)
        options.progress.start("rows into an overlay", size, "bytes")
        with (
            new_file(out, OVERLAY_KINDS[kind], force=options.force and kind != "pleo") as part,
            output_errors(out),
        ):
            with part.open("wb") as file:
                for chunk in chunks():
                    file.write(chunk)
                    options.progress.advance(len(chunk))
            if options.verify:
                _verify(part, chunks(), out)
    return replace(done, verified=options.verify)


def _require_layer(source: RowSource) -> int:
    if source.dim is None or source.dtype is None:
        raise InputError(f"{source.path} holds no vectors", "give a table or a checkpoint")
    if len(source.layers) != 1:
        raise InputError(
            f"{source.path} has rows of {len(source.layers)} layers, and an overlay is of one",
            "choose it with --layers",
        )
    return source.layers[0]


def _base(source: RowSource, layer: int, options: WriteOptions) -> RowSource:
    """Open the table whose rows are replaced. Raises MismatchError for one of another layout."""
    assert options.patch is not None
    base = _open(locate(options.patch), options.tokenizer)
    if options.verify:
        require_agreement(base, "--no-verify takes it as it is")
    ours = source.layout
    entry = next((each for each in base.layout.layers if each.layer == layer), None)
    differ = [
        name
        for name, same in (
            ("layers", layer in base.layers),
            ("dim", base.dim == source.dim),
            ("orders", base.layout.orders == ours.orders),
            ("heads", base.layout.heads == ours.heads),
            ("rows, moduli or multipliers", entry == ours.layer(layer)),
        )
        if not same
    ]
    if differ:
        raise MismatchError(
            f"{source.path} is no edit of {options.patch}: other {', '.join(differ)}",
            "name the table that the rows were edited from with --patch",
        )
    return base


def _open(path: Path, tokenizer: Path | None) -> RowSource:
    for name in FORMATS:
        form = FORMATS.load(name)
        found = form.recognise(path)
        if found is not None:
            return form.open_with(found, tokenizer)
    raise InputError(f"{path} holds no rows", "name a table or a checkpoint with --patch")


def _edits(
    source: RowSource, layer: int, base: RowSource | None, listed: IO[bytes], options: WriteOptions
) -> _Edits:
    """Return which rows are written. Raises InputError where none is, or nothing chooses them."""
    rows = source.layout.layer(layer).rows
    first, stop = options.rows or (0, rows)
    if stop > rows:
        raise InputError(
            f"--rows {first}:{stop} goes past the {rows:,} rows of layer {layer}", "choose fewer"
        )
    if base is None:
        if options.rows is None:
            raise InputError(
                "an overlay holds some rows of a table",
                "give --rows A:B, or --patch BASE for the rows that differ from those of BASE",
            )
        return _Edits(source=source, layer=layer, count=stop - first, first=first)
    count = _differing(source, base, layer, (first, stop), listed, options.progress)
    if not count:
        raise InputError(f"no row of {source.path} differs from {base.path}", "there is no edit")
    return _Edits(source=source, layer=layer, count=count, listed=listed)


def _differing(
    source: RowSource,
    base: RowSource,
    layer: int,
    rows: tuple[int, int],
    listed: IO[bytes],
    progress: Progress,
) -> int:
    """Write the numbers of the rows whose bytes differ to `listed`; return how many there are.

    Rows of different dtypes, or of layers with different scales, are compared as float32.
    """
    dim, dtype = source.dim or 1, source.dtype or ""
    readers = [stored_reader(each, dtype) for each in (source, base)]
    as_stored = base.dtype == dtype and layer_scale(source, layer) == layer_scale(base, layer)

    def read(index: int, first: int, count: int) -> list[NDArray[Any]]:
        reader = readers[index]
        if as_stored and reader is not None:
            return reader(layer, first, count)
        values = np.empty((count, dim), dtype=np.float32)
        (source, base)[index].read(layer, first, values)
        return [values]

    found, step = 0, max(1, _SCANNED // dim)
    progress.start("compare", rows[1] - rows[0], "rows")
    for first in range(*rows, step):
        count = min(step, rows[1] - first)
        other = np.zeros(count, dtype=np.bool_)
        for a, b in zip(read(0, first, count), read(1, first, count), strict=True):
            other |= (a.view(np.uint8) != b.view(np.uint8)).any(axis=1)
        numbers = np.flatnonzero(other) + first
        listed.write(numbers.astype(np.int64).tobytes())
        found += len(numbers)
        progress.advance(count)
    return found


def _header(kind: str, edits: _Edits, base: RowSource | None) -> tuple[bytes, int]:
    """Return what lies before the rows, and the bytes of a row. Raises InputError."""
    source, dim = edits.source, edits.source.dim or 0
    last = int(edits.numbers(edits.count - 1, 1)[0])
    if kind == "pleo":
        if last >= 2**31 or edits.count >= 2**32:
            raise InputError(
                f"row {last:,} does not fit the int32 of a .pleo",
                "write a .plepatch: --to plepatch",
            )
        return PLEO_HEADER.pack(b"PLEO", edits.count, dim), 4 * dim
    dtype = source.dtype or ""
    row_bytes = DTYPES.load(dtype).row_bytes(dim)
    width = row_bytes if dtype in BYTES else dim
    number = GGML_NUMBERS["int8" if dtype in BYTES else dtype]
    about: dict[str, Any] = {
        "format": MANIFEST,
        "written_by": WRITTEN_BY,
        "scheme": source.layout.scheme,
        "layer": edits.layer,
        "rows": source.layout.layer(edits.layer).rows,
        "dtype": dtype,
        "base": None
        if base is None
        else {"format": base.format, "digest": base.digest or sampled_digest(base)},
    }
    manifest = json.dumps(about, sort_keys=True).encode()
    name = tensor_name(source, edits.layer).encode()
    return (
        PLEPATCH_HEADER.pack(
            b"PLEOVLY1", VERSION, number, width, row_bytes, edits.count, len(manifest), name
        )
        + manifest,
        row_bytes,
    )


def tensor_name(source: RowSource, layer: int) -> str:
    """Return what GGUF files call the tensor of a layer's rows."""
    if source.layout.scheme == "qwen-ple":
        return "per_layer_token_embd.weight"
    return f"blk.{layer}.engram_embd.weight"


def _chunks(kind: str, edits: _Edits, head: bytes, row_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of the file in order."""
    yield head
    if kind == "pleo":
        for numbers in edits.pieces(0):
            yield numbers.astype("<i4").tobytes()
        for numbers in edits.pieces(row_bytes):
            yield _values(edits, numbers).astype("<f4", copy=False).tobytes()
        return
    for numbers in edits.pieces(row_bytes):
        parts = [numbers.astype("<u8").reshape(-1, 1), *_stored(edits, numbers)]
        raw = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
        yield np.concatenate(raw, axis=1).tobytes()


def _window(numbers: NDArray[np.int64]) -> tuple[int, int] | None:
    """Return the first row and how many to read where the rows lie close together, else None.

    Rows that are read do not count as memory of the process, as those that are mapped do.
    """
    first, last = int(numbers[0]), int(numbers[-1])
    return (first, last - first + 1) if last - first < _CLOSE * len(numbers) else None


def _values(edits: _Edits, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows float32[n, dim] at ascending numbers."""
    source, window = edits.source, _window(numbers)
    if window is None:
        return source.vectors(edits.layer, numbers)
    values = np.empty((window[1], source.dim or 0), dtype=np.float32)
    source.read(edits.layer, window[0], values)
    return values[numbers - window[0]]


def _stored(edits: _Edits, numbers: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Return the rows [n, width] at ascending numbers as stored, and scales of their own."""
    source, window = edits.source, _window(numbers)
    if window is None:
        found = [each for each in source.stored(edits.layer, numbers) if each is not None]
    else:
        scaled = DTYPES.load(source.dtype or "").scaling is not None
        parts = (ROWS, SCALES) if scaled else (ROWS,)
        found = [source.lines(edits.layer, part, *window) for part in parts]
        found = [each[numbers - window[0]] for each in found]
    return found


def _verify(part: Path, chunks: Iterator[bytes], out: Path) -> None:
    """Raise ArtifactError unless the file has these bytes, and is read as an overlay."""
    with part.open("rb") as file:
        for chunk in chunks:
            if file.read(len(chunk)) != chunk:
                raise ArtifactError(f"{out} is not what was written", "check the disk")
        if file.read(1):
            raise ArtifactError(f"{out} is longer than it should be", "check the disk")
    require_agreement(FORMAT.open(part, None), "check the disk")


def _is_pleo(path: Path) -> Listing | None:
    try:
        FORMAT.open(path, None)
    except EngramError:
        return None
    return Listing()


def _listing(path: Path) -> Listing | None:
    try:
        overlay = FORMAT.open(path, None)
    except EngramError:
        return None
    manifest = overlay.manifest if isinstance(overlay, Overlay) else None
    return Listing() if (manifest or {}).get("written_by") == WRITTEN_BY else None


OVERLAY_KINDS = {
    kind: Kind(name=f".{kind}", listing=listing, folder=False)
    for kind, listing in (("pleo", _is_pleo), ("plepatch", _listing))
}
# A .pleo has no place for a mark, so that --force never replaces one.
REPLACED_KINDS = {
    "pleo": Kind(name=".pleo that says who wrote it", listing=lambda _: None, folder=False),
    "plepatch": OVERLAY_KINDS["plepatch"],
}
PLEO = Target(write=partial(_write, "pleo"), part_of_rows=True)
PLEPATCH = Target(write=partial(_write, "plepatch"), dtypes=(*PLAIN, *BYTES), part_of_rows=True)

"""Writes an overlay as the other kind, .pleo or .plepatch, with float32 values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import output_errors
from engram_cli.formats.base import WriteOptions, Written, require_agreement
from engram_cli.formats.overlay import (
    FORMAT,
    MANIFEST,
    PLEO_HEADER,
    PLEPATCH_HEADER,
    VERSION,
    Overlay,
)
from engram_cli.outputs import Kind, new_file, prepare_output

_TENSOR = "per_layer_token_embd.weight"  # of a .pleo, which names none
_FLOAT32 = 0  # ggml's number


def copy_overlay(
    kind: str, source: Overlay, out: Path, options: WriteOptions, kinds: tuple[Kind, Kind]
) -> Written:
    """Write all rows of an overlay as `kind`: float32 values, under the same numbers.

    `kinds`: of what is written, and of what may be replaced. Raises InputError for rows that a
    .pleo does not hold, OutputError, ArtifactError.
    """
    if options.rows is not None or options.patch is not None:
        raise InputError(f"{source.path} has some rows already", "leave out --rows and --patch")
    if source.path.suffix == f".{kind}":
        raise InputError(f"{source.path} is a .{kind} already", "copy the file")
    require_agreement(source, "take the overlay again")
    numbers = source.row_numbers().astype(np.int64)
    if next(source.pieces(), None) is None:
        raise InputError(
            f"{source.path} has rows of {source.stored_as}, which are not decoded here",
            "write a .pleo from the table that they are for",
        )
    if kind == "pleo" and int(numbers.max(initial=0)) >= 2**31:
        raise InputError(f"row {numbers.max():,} does not fit the int32 of a .pleo", "keep it")
    head = _header(kind, source)
    size = len(head) + source.count * (4 * source.width + (4 if kind == "pleo" else 8))
    done = Written(dialect=kind, files=(out.name,), size=size)
    if options.check:
        return done
    prepare_output(out, kinds[1], force=options.force, inputs=(source.path,))
    options.progress.start("rows into an overlay", size, "bytes")
    with new_file(out, kinds[0], force=options.force and kind != "pleo") as part:
        with output_errors(out), part.open("wb") as file:
            for chunk in _chunks(kind, source, head):
                file.write(chunk)
                options.progress.advance(len(chunk))
        if options.verify:
            _verify(source, part, out)
    return replace(done, verified=options.verify)


def _header(kind: str, source: Overlay) -> bytes:
    if kind == "pleo":
        return PLEO_HEADER.pack(b"PLEO", source.count, source.width)
    manifest = json.dumps({"format": MANIFEST, "written_by": "engram-tables"}).encode()
    row_bytes, name = 4 * source.width, (source.tensor or _TENSOR).encode()
    packed = PLEPATCH_HEADER.pack(
        b"PLEOVLY1", VERSION, _FLOAT32, source.width, row_bytes, source.count, len(manifest), name
    )
    return packed + manifest


def _chunks(kind: str, source: Overlay, head: bytes) -> Iterator[bytes]:
    """Yield the bytes of the file in order."""
    numbers, first = source.row_numbers(), 0
    yield head
    if kind == "pleo":
        yield numbers.astype("<i4").tobytes()
    for values in source.pieces():
        assert values is not None
        if kind == "pleo":
            yield values.astype("<f4", copy=False).tobytes()
            continue
        own = numbers[first : first + len(values)].astype("<u8").reshape(-1, 1)
        first += len(values)
        yield np.concatenate([own.view(np.uint8), values.view(np.uint8)], axis=1).tobytes()


def _verify(source: Overlay, part: Path, out: Path) -> None:
    """Raise ArtifactError unless the file has the same rows under the same numbers."""
    again = FORMAT.open(part, None)
    assert isinstance(again, Overlay)
    same = np.array_equal(again.row_numbers(), source.row_numbers())
    for a, b in zip_longest(source.pieces(), again.pieces()):
        same = same and a is not None and b is not None and a.tobytes() == b.tobytes()
    if not same:
        raise ArtifactError(f"{out} is not what was written", "check the disk")

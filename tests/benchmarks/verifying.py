"""Verifying all rows of a checkpoint, compared with a plain sequential read of the same bytes.

The checkpoints are half a GB, warm. The read keeps one buffer of 1 MiB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from formats.checkpoints import Writer
from runner import Case

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.dtypes import TENSOR_DTYPES
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.safetensors import raw_header
from engram_cli.rows.source import ROWS, SCALES, Span
from engram_cli.table.scan.fault_scan import scan_faults

SIZE = 2**29
# The values of a row, and the dtypes of its items and scales.
ROWS_OF = {
    "fp8_e8m0": (256, "float8_e4m3fn", "float8_e8m0fnu"),
    "bfloat16": (160, "bfloat16", None),
}


def cases() -> Iterator[Case]:
    """One layer in one safetensors file, on one thread and on all."""
    threads = os.cpu_count() or 1
    for dtype in ROWS_OF:
        with tempfile.TemporaryDirectory() as folder:
            source, file, size = _written(Path(folder), dtype)
            yield Case(
                name=f"all rows of a checkpoint, {ROWS_OF[dtype][0]} x {dtype}",
                amount=size,
                unit="bytes",
                notes="Contestants give the bytes they read. verify finds NaN, zero rows, scales, "
                "saturation and repeated blocks.",
                contestants={
                    "readinto": lambda file=file: _read(file),
                    "verify --full, 1 thread": lambda source=source: _verify(source, 1),
                    f"verify --full, {threads} threads": lambda s=source: _verify(s, threads),
                },
                same=lambda plain, read: 0 <= plain - read < 2**20,
            )


def _written(folder: Path, dtype: str) -> tuple[FileRows, Path, int]:
    """Write a table of random rows; return it, its file, and the file's bytes."""
    dim, items, scales = ROWS_OF[dtype]
    item = np.dtype(TENSOR_DTYPES[items][1])
    layout = _layout(SIZE // (dim * item.itemsize) // 16)
    rows = layout.layers[0].rows
    writer, random = Writer(folder=folder), np.random.default_rng(0)
    high = 120 if item.itemsize == 1 else 0x4000
    values = random.integers(0, high, (rows, dim), dtype=item)
    writer.add("model.safetensors", "rows", items, values)
    if scales is not None:
        own = random.integers(110, 130, (rows, dim // 32), dtype=np.uint8)
        writer.add("model.safetensors", "scales", scales, own)
    writer.write({})
    os.sync()  # else the system writes the file to the disk while it is timed
    file = folder / "model.safetensors"
    parts = {}
    header, data = raw_header(file)
    for name, part in (("rows", ROWS), ("scales", SCALES)):
        if name in header:
            begin, shape = header[name]["data_offsets"][0], header[name]["shape"]
            span = Span(file=file, begin=data + begin, first=0, rows=rows)
            kind = item if name == "rows" else np.dtype(np.uint8)
            parts[1, part] = FileArray([span], kind, tuple(shape[1:]))
    source = FileRows(
        format="demo", path=file, layout=layout, layers=(1,), dim=dim, dtype=dtype, parts=parts
    )
    return source, file, file.stat().st_size


def _layout(rows: int) -> HashLayout:
    return hash_layout(
        "qwen-ple", vocab_size=99_092, eos_id=1, rows_per_head=rows, heads=8, layers=(1,)
    )


def _read(file: Path) -> int:
    """Return how many bytes a plain read gets."""
    buffer, total = bytearray(2**20), 0
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            total += count
    return total


def _verify(source: FileRows, threads: int) -> int:
    """Return how many bytes a verification reads; nothing may be wrong."""
    scan = scan_faults(source, None, threads=threads)
    if scan.repeats or any(each.found.not_finite or each.hole for each in scan.layers):
        raise SystemExit("a fault was found in sound rows")
    return scan.read_bytes

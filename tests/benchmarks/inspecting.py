"""Inspecting a table: a sample and one pass with all measures, compared with a plain read.

The tables are half a GB of rows of 64 values, warm. The read keeps one buffer of 1 MiB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runner import Case

from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.scan.sample import scan_sample
from engram_cli.table.scan.scan import scan_layer
from engram_cli.table.scan.source import LayerReader
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import TableStore, open_table

SIZE = 2**29
# The bytes of a row's items; scales are read too, and not counted.
ROW_BYTES = {"float32": 256, "bfloat16": 128, "int8": 64, "fp8_e8m0": 64, "int4_b32": 32}


def cases() -> Iterator[Case]:
    """One layer of 16 heads, on one thread and on all."""
    threads = os.cpu_count() or 1
    for dtype in ROW_BYTES:
        with tempfile.TemporaryDirectory() as folder:
            table = _build(Path(folder) / "t.zarr", dtype)
            files = sorted((table.path / "1").glob("c.*"))
            yield Case(
                name=f"all rows of a table, 64 x {dtype}",
                amount=sum(file.stat().st_size for file in files),
                unit="bytes",
                notes="Contestants give the bytes of the rows that their figures are of. inspect "
                "reads a sample of 65,536 rows, with --full all.",
                contestants={
                    "readinto": lambda files=files: _read(files),
                    "inspect": lambda table=table: _sample(table.path),
                    "inspect --full, 1 thread": lambda table=table: _scan(table, 1),
                    f"inspect --full, {threads} threads": lambda table=table: _scan(table, threads),
                },
                same=lambda plain, scanned: 0 <= plain - scanned < 2**20,
            )


def _build(path: Path, dtype: str) -> TableStore:
    rows = SIZE // ROW_BYTES[dtype] // 16
    layout = hash_layout(
        "qwen-ple", vocab_size=99_092, eos_id=1, rows_per_head=rows, heads=8, layers=(1,)
    )
    spec = TableSpec(layout=layout, dim=64, dtype=dtype, init=make_init("normal"))
    build_store(spec, path, threads=2)
    os.sync()  # else the system writes the table to the disk while it is timed
    return open_table(path)


def _read(files: list[Path]) -> int:
    buffer, total = bytearray(2**20), 0
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                total += count
    return total


def _scan(table: TableStore, threads: int) -> int:
    entry = table.layout.layers[0]
    reader = LayerReader(table, entry.layer)
    scan_layer(reader, threads=threads)
    return sum(entry.moduli) * reader.stored_row_bytes


def _sample(path: Path) -> int:
    table = open_table(path)  # again each time: what was mapped would help
    entry = table.layout.layers[0]
    reader = LayerReader(table, entry.layer)
    found = scan_sample(reader)
    return sum(column.rows for column in found.columns) * reader.stored_row_bytes

"""Writes the files of kept sums: their metadata, and the hashes of documents."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.files import inner_file, output_errors
from engram_cli.table.grid import SUMS, ChunkedArray
from engram_cli.table.kept_sums import HASH, META, KeptSums, documents_array
from engram_cli.table.store import array_metadata


def write_description(folder: Path, kept: KeptSums, documents: int) -> None:
    """Write the metadata of the group `sums` in `folder`, the table. Raises OutputError."""
    array = documents_array(documents)
    with inner_file(folder / array.name / META) as part:
        part.write_bytes(array_metadata(array))
    group = {"zarr_format": 3, "node_type": "group", "attributes": kept.to_json()}
    with inner_file(folder / SUMS / META) as part:
        part.write_text(json.dumps(group, indent=1), encoding="utf-8")


def write_hashes(folder: Path, hashes: NDArray[np.uint64]) -> None:
    """Write the documents' hashes, ascending. Raises OutputError."""
    with inner_file(folder / documents_array(len(hashes)).file(0)) as part:
        np.ascontiguousarray(hashes, dtype=HASH).tofile(part)


def prepare_sums(folder: Path, arrays: Sequence[ChunkedArray]) -> None:
    """Make the files of sums in a half-built table, all zero, or keep those that are there."""
    for array in arrays:
        file = folder / array.file(0)
        with output_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / META).write_bytes(array_metadata(array))
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                os.ftruncate(handle, array.file_bytes)
            finally:
                os.close(handle)

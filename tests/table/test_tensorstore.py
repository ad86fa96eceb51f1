"""tensorstore, a reader that shares nothing with zarr-python, reads every array of every dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore
from table.tables import build, raw_layout

from engram_cli.rows import DTYPES
from engram_cli.table.store import open_array, open_table


def opened(path: Path) -> tensorstore.TensorStore:
    kvstore = {"driver": "file", "path": str(path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_tensorstore_reads_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    build(tmp_path / "t.zarr", dtype=dtype, dim=37, chunk_rows=50, tokens=7)
    table = open_table(tmp_path / "t.zarr")
    assert len(table.arrays) >= 5
    for name, array in table.arrays.items():
        peer = opened(table.path / name)
        assert peer.shape == array.shape
        assert peer.dtype.numpy_dtype == array.dtype
        assert peer.chunk_layout.read_chunk.shape == array.chunk_shape
        values = peer.read().result()
        assert values.tobytes() == open_array(table.path, array).read(0, array.rows).tobytes()
        np.testing.assert_array_equal(peer[array.rows - 1].read().result(), values[-1])


def test_a_table_without_a_lookup_too(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", raw_layout(), dtype="int4_b32", init="zeros")
    table = open_table(tmp_path / "t.zarr")
    for name in table.arrays:
        assert not opened(table.path / name).read().result().any()

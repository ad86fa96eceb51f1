"""Arrow columns as NumPy arrays, compared with Arrow's own Python values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engram_cli.arrow import booleans, integers


def pieces(values: list[object], kind: pa.DataType) -> list[pa.ChunkedArray]:
    """The values as one chunk, as several, and as parts of larger ones."""
    whole = pa.array(values, kind)
    parts = [whole[:3], whole[3:11], whole[11:]]
    return [
        pa.chunked_array([whole]),
        pa.chunked_array(parts),
        pa.chunked_array([part[1:] for part in parts]),
        pa.chunked_array([], kind),
    ]


@pytest.mark.parametrize("missing", [False, True])
def test_booleans(missing: bool) -> None:
    random = np.random.default_rng(1)
    values: list[object] = random.integers(0, 2, 30).astype(bool).tolist()
    if missing:
        values[4::3] = [None] * len(values[4::3])
    for column in pieces(values, pa.bool_()):
        assert booleans(column).tolist() == [bool(each) for each in column.to_pylist()]
    with pytest.raises(ValueError, match="a column is int32"):
        booleans(pa.chunked_array([pa.array([1], pa.int32())]))


def test_integers() -> None:
    values: list[object] = [*range(20), None, *range(5)]
    for column in pieces(values, pa.int32()):
        wanted = [-1 if each is None else each for each in column.to_pylist()]
        assert integers(column, -1).tolist() == wanted
    with pytest.raises(ValueError, match="lacks values"):
        integers(pa.chunked_array([pa.array([1, None], pa.int32())]))

"""The description of each dtype, and what adding one takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engram_cli.rows import DTYPES


@pytest.mark.parametrize("name", list(DTYPES))
def test_a_dtype_has_the_name_it_is_registered_by(name: str) -> None:
    row_type = DTYPES.load(name)
    assert row_type.name == name
    assert row_type.quantised == (row_type.items.values is not None)


@pytest.mark.parametrize("dim", [1, 7, 32, 33, 160])
@pytest.mark.parametrize("name", list(DTYPES))
def test_rows_and_scales_take_what_the_description_says(name: str, dim: int) -> None:
    row_type = DTYPES.load(name)
    values = np.ones((10, dim), dtype=np.float32)
    stored: Any = np.zeros((10, row_type.width(dim)), dtype=row_type.physical)
    size, scales = stored.nbytes, None
    if row_type.scaling is not None:
        shape = row_type.scaling.shape(10, dim)
        scales = np.ones(shape, dtype=row_type.scaling.dtype)
        size += 0 if row_type.of_layer else scales.nbytes
    row_type.encode(values, stored, scales)
    read = np.zeros_like(values)
    row_type.decode(stored, scales, read)
    np.testing.assert_allclose(read, values, rtol=0.02)
    assert row_type.row_bytes(dim) == size / 10


@pytest.mark.parametrize("name", list(DTYPES))
def test_rows_of_zeros_say_nothing(name: str) -> None:
    row_type = DTYPES.load(name)
    stored: Any = np.zeros((5, row_type.width(6)), dtype=row_type.physical)
    assert not row_type.any_nonzero(stored)
    if stored.dtype.kind == "f":
        stored[:] = -0.0
    else:
        stored[:] = row_type.items.sign  # minus zero, where there is one
    assert not row_type.any_nonzero(stored)
    stored[-1, -1] += 1
    assert row_type.any_nonzero(stored)

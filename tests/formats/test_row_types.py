"""How bundles store rows is how tables do."""

from __future__ import annotations

import numpy as np
import pytest

from engram_cli.formats.row_types import FLOAT_DTYPES, ROW_TYPES
from engram_cli.formats.tensors import physical_dtype
from engram_cli.rows.codecs import CODECS
from engram_cli.rows.codecs.base import row_bytes


def test_every_dtype_of_a_table_has_a_place_in_a_bundle() -> None:
    assert set(ROW_TYPES) == set(CODECS)
    assert FLOAT_DTYPES == ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("dim", [1, 7, 32, 33, 160])
@pytest.mark.parametrize("name", ROW_TYPES)
def test_items_and_scales_are_the_codecs(name: str, dim: int) -> None:
    kind, codec = ROW_TYPES[name], CODECS.load(name)
    assert physical_dtype(kind.items) == codec.physical
    assert kind.width(dim) == codec.width(dim)
    scaling = codec.scaling
    assert (kind.scales is None) == (scaling is None)
    if scaling is not None and kind.scales is not None:
        assert physical_dtype(kind.scales) == scaling.dtype
        assert kind.per == scaling.per
        shape = (1,) if scaling.per == "layer" else (10, scaling.width(dim))
        assert kind.scale_shape(10, dim) == shape
    assert row_bytes(codec, dim) >= kind.width(dim) * codec.physical.itemsize


@pytest.mark.parametrize("name", ROW_TYPES)
def test_rows_of_zeros_say_nothing(name: str) -> None:
    kind = ROW_TYPES[name]
    stored = np.zeros((5, kind.width(6)), dtype=physical_dtype(kind.items))
    assert not kind.any_nonzero(stored)
    if stored.dtype.kind == "f":
        stored[:] = -0.0
    else:
        stored[:] = kind.sign  # minus zero, where there is one
    assert not kind.any_nonzero(stored)
    stored[-1, -1] += 1
    assert kind.any_nonzero(stored)

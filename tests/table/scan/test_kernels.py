"""The kernels of the scan against their definition: norms, hashes, signs, bins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engram_cli.table.codecs import CODECS
from engram_cli.table.scan import kernels, reference

MEASURES: dict[str, Callable[..., None]] = {
    "float32": kernels.measure_float32,
    "float16": kernels.measure_float16,
    "bfloat16": kernels.measure_bfloat16,
}
INT = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}


def keys_for(half: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2**32, size=(2, half), dtype=np.uint32)


def check(dtype: str, bits: np.ndarray) -> None:
    """Rows of item bits [n, dim], held against the definition."""
    codec = CODECS.load(dtype)
    stored = bits.view(codec.physical)
    values = np.empty(bits.shape, dtype=np.float32)
    codec.decode(stored, None, values)
    words = np.ascontiguousarray(bits).view(np.uint32).reshape(len(bits), 2, -1)
    keys = keys_for(words.shape[2])
    norms = np.empty(len(bits), dtype=np.float32)
    hashes = np.empty(len(bits), dtype=np.uint64)
    signs = np.empty(len(bits), dtype=np.uint32)
    MEASURES[dtype](words, keys, norms, hashes, signs)
    wanted = reference.measure(words, keys, values)
    np.testing.assert_array_equal(hashes, wanted[1])
    np.testing.assert_array_equal(signs, wanted[2])
    np.testing.assert_allclose(norms, wanted[0], rtol=2e-6)
    assert np.array_equal(norms == 0, ~(values != 0).any(axis=1))


@pytest.mark.parametrize("dtype", MEASURES)
@pytest.mark.parametrize("dim", [4, 8, 12, 64, 160])
def test_random_rows(dtype: str, dim: int) -> None:
    values = np.random.default_rng(dim).normal(0, 0.02, (50, dim)).astype(np.float32)
    values[7] = 0
    values[9] = -0.0
    codec = CODECS.load(dtype)
    stored: Any = np.empty((50, dim), dtype=codec.physical)
    codec.encode(values, stored, None)
    check(dtype, stored.view(INT[dtype]))


@pytest.mark.parametrize("dtype", MEASURES)
@given(data=st.data())
def test_any_bits(dtype: str, data: st.DataObject) -> None:
    """NaN, infinities, the smallest and the largest numbers among them."""
    kind = INT[dtype]
    top = np.iinfo(kind).max
    awkward = st.sampled_from(
        [0, 1, 2, top, top >> 1, 0x7F80 if kind == np.uint16 else 0x7F800000, 0x7C00, 0x0400]
    )
    items = st.one_of(st.integers(0, int(top)), awkward)
    check(dtype, data.draw(arrays(kind, (3, 8), elements=items)))


def test_other_rows_have_other_hashes() -> None:
    """Also those that differ in a bit, and those whose halves are swapped."""
    rows = [np.zeros(16, dtype=np.uint32)]
    for bit in range(16 * 32):
        row = np.zeros(16, dtype=np.uint32)
        row[bit // 32] = 1 << (bit % 32)
        rows.append(row)
    rows += [np.roll(np.arange(1, 17, dtype=np.uint32), shift) for shift in range(1, 16)]
    words = np.array(rows).reshape(len(rows), 2, 8)
    hashes = np.empty(len(rows), dtype=np.uint64)
    scratch = np.empty(len(rows), dtype=np.float32), np.empty(len(rows), dtype=np.uint32)
    kernels.measure_float32(words, keys_for(8), scratch[0], hashes, scratch[1])
    assert len(np.unique(hashes)) == len(rows)


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_bins_hold_the_norms_they_say(norm: float) -> None:
    at = kernels.bin_of(np.float32(norm))
    low = 2.0 ** (at // kernels.STEPS - 127) * (1 + at % kernels.STEPS / kernels.STEPS)
    assert low <= norm < low * (1 + 1 / kernels.STEPS) * (1 + 1e-12)

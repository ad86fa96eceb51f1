"""The kernels of the scan against their definition: norms, hashes, bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from table.scan import plain

from engram_cli.rows import DTYPES
from engram_cli.table.scan.kernels import norms as measured
from engram_cli.table.scan.kernels import rows as kernels

FLOATS = {
    "float32": measured.FLOAT32,
    "float16": measured.FLOAT16,
    "bfloat16": measured.BFLOAT16,
}
SCALED = {
    "int8": measured.INT8,
    "int8_b32": measured.INT8,
    "int4": measured.INT4,
    "int4_b32": measured.INT4,
    "fp8": measured.E4M3,
    "fp8_e8m0": measured.E4M3,
}
NO_FACTORS = np.empty(0, dtype=np.float32)


def check(dtype: str, stored: np.ndarray, scales: np.ndarray | None, dim: int) -> None:
    """The norms of stored rows [n, width], held against those of the decoded values."""
    codec: Any = DTYPES.load(dtype)
    values = np.empty((len(stored), dim), dtype=np.float32)
    codec.decode(stored, scales, values)
    items = np.ascontiguousarray(stored).view(np.uint8).reshape(len(stored), -1)
    factors, own = NO_FACTORS, 0
    if scales is not None:
        factors = np.ascontiguousarray(codec.widen(scales).reshape(-1), dtype=np.float32)
        own = 0 if codec.scaling.per == "layer" else codec.scaling.width(dim)
    norms = np.empty(len(stored), dtype=np.float32)
    kind = (FLOATS | SCALED)[dtype]
    flat = items.reshape(-1)
    width, scratch = items.shape[1], np.empty(items.size // 16 + 1, dtype=np.float32)
    measured.norms_of(kind, flat, width, factors, own, int(own > 1), scratch, norms)
    np.testing.assert_allclose(norms, plain.norms(values), rtol=2e-6)
    assert np.array_equal(norms == 0, ~(values != 0).any(axis=1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [4, 8, 12, 64, 160])
def test_rows_of_floats(dtype: str, dim: int) -> None:
    values = np.random.default_rng(dim).normal(0, 0.02, (50, dim)).astype(np.float32)
    values[7] = 0
    values[9] = -0.0
    codec = DTYPES.load(dtype)
    stored: Any = np.empty((50, dim), dtype=codec.physical)
    codec.encode(values, stored, None)
    check(dtype, stored, None, dim)


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("dim", [32, 64, 160])
def test_rows_of_items_under_scales(dtype: str, dim: int) -> None:
    """Zero rows, NaN, and scales whose squares leave float32 among them; at the end, where the
    last rows do not fill the vectors, too."""
    values = np.random.default_rng(dim).normal(0, 0.02, (53, dim)).astype(np.float32)
    values[51] = 0
    values[52, -1] = np.nan
    values[7] = 0
    values[9, 3] = np.nan
    values[11] *= np.float32(2.0**-110)
    values[12] *= np.float32(2.0**80)
    codec: Any = DTYPES.load(dtype)
    stored: Any = np.empty((53, codec.width(dim)), dtype=codec.physical)
    scales = np.array([0.001], dtype=np.float32)
    if codec.scaling.per != "layer":
        scales = np.empty((53, codec.scaling.width(dim)), dtype=codec.scaling.dtype)
    codec.encode(values, stored, scales)
    check(dtype, stored, scales, dim)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_bits_of_floats(dtype: str, data: st.DataObject) -> None:
    """NaN, infinities, the smallest and the largest numbers among them."""
    codec = DTYPES.load(dtype)
    kind: Any = np.dtype(f"u{codec.physical.itemsize}")
    top = int(np.iinfo(kind).max)
    awkward = st.sampled_from(
        [0, 1, 2, top, top >> 1, 0x7F80 if kind.itemsize == 2 else 0x7F800000, 0x7C00, 0x0400]
    )
    bits = data.draw(arrays(kind, (3, 8), elements=st.one_of(st.integers(0, top), awkward)))
    check(dtype, bits.view(codec.physical), None, 8)


@pytest.mark.parametrize("dtype", SCALED)
@settings(max_examples=60)
@given(data=st.data())
def test_any_items_under_any_scale(dtype: str, data: st.DataObject) -> None:
    """Scales that are zero, NaN, infinite, and of a table that others wrote."""
    codec: Any = DTYPES.load(dtype)
    dim, wide = 64, codec.width(64)
    awkward = st.sampled_from([0, 0x80, 0x7F, 0x88, 1, 8])
    elements = st.one_of(awkward, st.integers(0, 255))
    items = data.draw(arrays(np.uint8, (19, wide), elements=elements))
    shape = (1,) if codec.scaling.per == "layer" else (19, codec.scaling.width(dim))
    size = codec.scaling.dtype.itemsize
    bits = data.draw(
        arrays(np.dtype(f"u{size}"), shape, elements=st.integers(0, 2 ** (8 * size) - 1))
    )
    with np.errstate(invalid="ignore", over="ignore"):
        scales = bits.view(codec.scaling.dtype)
        check(dtype, items.view(codec.physical), scales, dim)


def hashed(items: np.ndarray, factors: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Hashes of rows [n, bytes] by the kernels."""
    hashes = np.empty(len(items), dtype=np.uint64)
    own = 0 if factors.size == 0 else factors.size // len(items)
    width = items.shape[1] // 8
    repeated, partial = kernels.repeat_keys(keys, width), np.empty(items.size // 8, np.uint64)
    kernels.sum_rows(items.view(np.uint64), factors, own, repeated, keys[width:], partial, hashes)
    norms = np.ones(len(items), dtype=np.float32)
    kernels.finish_hashes(norms, hashes, np.uint64(0), np.empty(len(items), dtype=np.uint8))
    return hashes


@pytest.mark.parametrize("scales", [0, 1, 3])
@pytest.mark.parametrize("size", [8, 16, 24, 32, 64, 80, 104, 160, 256])
def test_hashes_are_their_definition(size: int, scales: int) -> None:
    generator = np.random.default_rng(size)
    items = generator.integers(0, 256, (40, size), dtype=np.uint8)
    factors = generator.normal(size=40 * scales).astype(np.float32)
    keys = generator.integers(0, 2**64, size // 8 + scales, dtype=np.uint64)
    wanted = plain.hashes(items.view(np.uint64), factors.reshape(40, scales), keys)
    np.testing.assert_array_equal(hashed(items, factors, keys), wanted)


def test_other_rows_have_other_hashes() -> None:
    """Also those that differ in a bit, those whose halves are swapped, or that differ in scale."""
    rows = [np.zeros(64, dtype=np.uint8)]
    for bit in range(64 * 8):
        row = np.zeros(64, dtype=np.uint8)
        row[bit // 8] = 1 << (bit % 8)
        rows.append(row)
    rows += [np.roll(np.arange(1, 65, dtype=np.uint8), shift) for shift in range(1, 64)]
    rows += [np.zeros(64, dtype=np.uint8)] * 2
    factors = np.ones(len(rows), dtype=np.float32)
    factors[-2:] = 2.0, 4.0
    keys = np.random.default_rng(5).integers(0, 2**64, 9, dtype=np.uint64)
    hashes = hashed(np.array(rows), factors, keys)
    assert len(np.unique(hashes)) == len(rows)


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_bins_hold_the_norms_they_say(norm: float) -> None:
    at = kernels.bin_of(np.float32(norm))
    low = 2.0 ** (at // kernels.STEPS - 127) * (1 + at % kernels.STEPS / kernels.STEPS)
    assert low <= norm < low * (1 + 1 / kernels.STEPS) * (1 + 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4", "int4_b32", "fp8_e8m0"])
def test_rows_of_several_tiles(dtype: str) -> None:
    """Zero rows and NaN in the second tile; rows by their hash taken over in small parts."""
    rows, dim = kernels.TILE + 147, 64
    values = np.random.default_rng(1).normal(0, 0.02, (rows, dim)).astype(np.float32)
    values[kernels.TILE + 3] = 0
    values[kernels.TILE + 5, 7] = np.nan
    codec: Any = DTYPES.load(dtype)
    stored, scales, each = np.empty((rows, codec.width(dim)), dtype=codec.physical), None, 0
    if codec.scaling is not None:
        each = codec.scaling.width(dim)
        scales = np.empty((rows, each), dtype=codec.scaling.dtype)
    codec.encode(values, stored, scales)
    codec.decode(stored, scales, values)
    items = stored.view(np.uint8)
    factors = NO_FACTORS if scales is None else codec.widen(scales).reshape(-1)
    keys = np.random.default_rng(2).integers(0, 2**64, items.shape[1] // 8 + each, dtype=np.uint64)
    below = np.uint64(2**61)
    counts, sums = np.zeros(kernels.COUNTS, dtype=np.int64), np.zeros(kernels.SUMS)
    ends, bins = np.array([np.inf, 0], dtype=np.float32), np.zeros(kernels.BINS, dtype=np.int64)
    chosen, taken, done = np.empty((kernels.COLUMNS, 100), dtype=np.uint64), [], 0
    while done < rows:
        done += kernels.add_rows(
            (FLOATS | SCALED)[dtype], items[done:], factors[done * each :], each, int(each > 1),
            keys, np.empty(0, np.uint32), done, below, counts, sums, ends, bins,
            np.zeros((2, 10), dtype=np.int64), chosen,
        )  # fmt: skip
        taken.append(chosen[:, : counts[kernels.CHOSEN]].copy())
        counts[kernels.CHOSEN] = 0
    norms = plain.norms(values)
    usual = norms[norms > 0]
    assert counts.tolist() == [1, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(sums[:2], [usual.sum(), (usual**2).sum()], rtol=1e-5)
    np.testing.assert_allclose(ends, [usual.min(), usual.max()], rtol=2e-6)
    assert bins.sum() == rows - 2
    assert (
        abs(bins - np.bincount([kernels.bin_of(norm) for norm in usual], minlength=2048)).sum() < 9
    )
    wanted = plain.hashes(items.view(np.uint64), factors.reshape(rows, each), keys)
    picked = np.flatnonzero((wanted < below) & (norms > 0))
    np.testing.assert_array_equal(np.concatenate(taken, axis=1), [picked, wanted[picked]])
    assert len(picked) > 200

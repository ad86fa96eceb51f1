"""Faults in rows: kernels equal their twins, and what is measured is what decoding would show."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table.scan import plain

from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.source import ROWS, Span
from engram_cli.table.scan import fault_scan
from engram_cli.table.scan.fault_scan import sample_size, scan_faults
from engram_cli.table.scan.faults import ZeroRuns, digest, measure
from engram_cli.table.scan.kernels import codes as kernels

DTYPE_NAMES = ("float32", "float16", "bfloat16", "fp8_e8m0", "fp8", "int8", "int8_b32", "int4",
               "int4_b32", "nvfp4", "e8m0_e4m3", "q8_0", "q4_0", "q4_k", "q6_k")  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 70), width=st.integers(1, 600))
def test_kernels_equal_their_twins(data: st.DataObject, rows: int, width: int) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for kernel, dtype in (
        (kernels.largest_of_bytes, np.uint8),
        (kernels.largest_of_halves, np.uint16),
        (kernels.largest_of_words, np.uint32),
    ):
        codes = random.integers(0, 2 ** (8 * dtype().itemsize), (rows, width), dtype=dtype)
        mask = 2 ** (8 * dtype().itemsize - 1) - 1
        found = np.empty(rows, dtype=dtype)
        kernel(codes, dtype(mask), found)
        np.testing.assert_array_equal(found, plain.largest(codes, mask))
    codes = random.integers(120, 135, (rows, width)).astype(np.uint8)
    every = data.draw(st.sampled_from([1, 3]))
    found = kernels.count_of(codes, every, np.uint8(0x7F), np.uint8(0x7E))
    assert found == plain.count_of(codes, every, 0x7F, 0x7E)
    words, keys = (random.integers(0, 2**64, n, dtype=np.uint64) for n in (rows * 10, 7))
    assert int(kernels.digest(words, keys, every, np.uint64(5))) == plain.digest(
        words, keys, every, 5
    )


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_zero_and_bad_rows_are_those_that_decode_so(name: str) -> None:
    """Random bytes, so that every code and scale occurs."""
    row_type, dim, random = DTYPES.load(name), 256, np.random.default_rng(3)
    scaling = row_type.scaling
    stored = random.integers(0, 256, (400, row_type.width(dim) * row_type.physical.itemsize))
    stored = stored.astype(np.uint8)
    stored[::2] &= 0x3B  # rows without NaN
    stored[7:20] = 0
    scales = None
    if scaling is not None:
        shape = scaling.shape(400, dim)
        raw = random.integers(1, 255, (shape[0], shape[-1] * scaling.dtype.itemsize))
        raw = raw.astype(np.uint8) & (0x7B if scaling.dtype.itemsize > 1 else 0xFF)
        if len(shape) > 1:
            raw[40:44] = 0xFF
            raw[50:52] = 0
        scales = raw.view(scaling.dtype).reshape(shape)
    rows = stored.view(row_type.physical)
    found = measure(row_type, dim, rows, scales)
    values = np.empty((400, dim), dtype=np.float32)
    with np.errstate(all="ignore"):
        row_type.decode(rows, scales, values)
    bad = ~np.isfinite(values).all(axis=1)
    if name in ("q4_k", "q6_k"):  # a product of two finite scales may leave float32's range
        assert not (found.bad & ~bad).any()
    else:
        over = np.isinf(values).any(axis=1) & ~np.isnan(values).any(axis=1)
        np.testing.assert_array_equal(found.bad[~over], bad[~over])
    zero = (values == 0).all(axis=1)
    assert found.zero[7:20].all()
    if not name.startswith("q"):
        with_zero_scales = found.bad.copy()
        with_zero_scales[50:52] = True
        np.testing.assert_array_equal(found.zero[~with_zero_scales], zero[~with_zero_scales])


@settings(max_examples=100, deadline=None)
@given(zero=st.lists(st.booleans(), min_size=1, max_size=60), step=st.integers(1, 9))
def test_runs_do_not_depend_on_the_pieces(zero: list[bool], step: int) -> None:
    flags, whole, pieces = np.array(zero), ZeroRuns(), ZeroRuns()
    whole.add(0, flags)
    for first in range(0, len(flags), step):
        pieces.add(first, flags[first : first + step])
    text = "".join("x" if each else " " for each in zero)
    runs = text.split()
    for found in (whole, pieces):
        assert (found.rows, found.zero, found.runs) == (len(zero), sum(zero), len(runs))
        assert found.longest == max(map(len, runs), default=0)
        if runs:
            assert text[found.longest_at :].startswith("x" * found.longest)


def test_what_chance_makes_is_no_hole() -> None:
    random = np.random.default_rng(0)
    for share in (0.001, 0.1, 0.5, 0.9):
        runs = ZeroRuns()
        zero = random.random(200_000) < share
        runs.add(0, zero)
        assert not runs.is_hole()
        zero[1000:3000] = True
        again = ZeroRuns()
        again.add(0, zero)
        assert again.is_hole()
        assert again.longest_at <= 1000


def test_equal_digests_are_of_equal_rows() -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (50, 13), dtype=np.uint8)
    scales = random.integers(0, 256, (50, 3), dtype=np.uint8)
    first = digest(rows, scales)
    assert first == digest(rows.copy(), scales.copy())
    for changed in (rows, scales):
        changed[-1, -1] ^= 1
        assert digest(rows, scales) != first
        changed[-1, -1] ^= 1
    assert digest(rows[:-1], scales[:-1]) != first
    assert digest(rows, None) != first


def test_a_sample_is_as_large_as_it_must_be() -> None:
    assert sample_size(0.001) == 6905
    assert (1 - 0.001) ** 6905 <= 0.001 < (1 - 0.001) ** 6904


def table(path: Path, rows: np.ndarray, spans: int) -> FileRows:
    """A source of float32 rows without a digest, in a file of equal spans."""
    layout = hash_layout(
        "qwen-ple", vocab_size=9999, eos_id=1, rows_per_head=len(rows) // 16, layers=(1,)
    )
    random = np.random.default_rng(9)
    padded = random.random((layout.layers[0].rows, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    path.write_bytes(padded.tobytes())
    edges = np.arange(spans + 1) * len(padded) // spans
    places = [
        Span(file=path, begin=int(a) * 4 * rows.shape[1], first=int(a), rows=int(b - a))
        for a, b in pairwise(edges)
    ]
    parts = {(1, ROWS): FileArray(places, np.dtype("<f4"), (rows.shape[1],))}
    return FileRows(
        format="demo", path=path, layout=layout, layers=(1,), dim=rows.shape[1],
        dtype="float32", parts=parts,
    )  # fmt: skip


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((60_000, 4)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_all_rows_in_pieces(
    tmp_path: Path, rows: np.ndarray, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing depends on the number of threads, nor is lost where blocks and pieces meet."""
    monkeypatch.setattr(fault_scan, "BLOCK_BYTES", 16 * 100)
    rows[17_000:17_100] = 0
    rows[5, 0] = np.nan
    rows[40_000:52_000] = rows[20_000:32_000]
    scan = scan_faults(table(tmp_path / "t", rows, 1), None, threads=threads)
    (layer,) = scan.layers
    assert layer.hole == (17_000, 100)
    assert (layer.found.not_finite, layer.found.first_bad) == (1, 5)
    (repeat,) = scan.repeats
    assert (repeat.first, repeat.again, repeat.rows) == (20_000, (1, 40_000), 12_000)


def test_a_sample_finds_what_it_is_made_for(tmp_path: Path, rows: np.ndarray) -> None:
    rows[30_000:30_600] = 0
    rows[50_000:51_000, 2] = np.inf
    scan = scan_faults(table(tmp_path / "t", rows, 1), 0.01)
    (layer,) = scan.layers
    assert (layer.read, layer.whole) == (688, False)
    assert layer.found.not_finite > 0
    assert layer.hole is not None
    first, count = layer.hole
    assert first >= 30_000
    assert first + count <= 30_600
    assert scan.read_bytes == 688 * 16


def test_a_short_hole_is_found_around_a_zero_row(tmp_path: Path, rows: np.ndarray) -> None:
    """One row of the sample lies in it; single zero rows elsewhere are no holes."""
    rows[::500] = 0
    assert scan_faults(table(tmp_path / "t", rows, 1), 0.01).layers[0].hole is None
    rows[30_000:30_100] = 0
    (layer,) = scan_faults(table(tmp_path / "u", rows, 1), 0.01).layers
    assert layer.hole is not None
    assert layer.hole[1] > 64

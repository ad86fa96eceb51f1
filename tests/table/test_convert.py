"""A converted table holds the source's rows in another dtype, and says how far they moved."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table.building import fail_after
from table.tables import build, counted, mapped_layout

from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.rows import DTYPES, kernels
from engram_cli.table import convert as converting
from engram_cli.table.build import BuildReport, build_store
from engram_cli.table.convert import Difference, compare_tables, conversion
from engram_cli.table.store import TableStore, open_table

DIM = 40
OTHERS = [name for name in DTYPES if name != "float32"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    out = tmp_path_factory.mktemp("source") / "t.zarr"
    build(out, dim=DIM, tokens=9, seed=4)
    return open_table(out)


def convert(source: TableStore, out: Path, dtype: str, **options: object) -> BuildReport:
    how = {name: options.pop(name) for name in ("threads", "force") if name in options}
    spec = conversion(source, dtype, **options)
    return build_store(spec, out, hits=source.hits, **how)


def whole(table: TableStore, layer: int) -> np.ndarray:
    return np.concatenate([values for _, values in table.values(layer)])


@pytest.mark.parametrize("dtype", OTHERS)
def test_rows_are_those_that_the_codec_makes_of_the_source(
    tmp_path: Path, source: TableStore, dtype: str
) -> None:
    digest = convert(source, tmp_path / "t.zarr", dtype, chunk_rows=50, threads=3).digest
    assert convert(source, tmp_path / "u.zarr", dtype, chunk_rows=50).digest == digest
    table = open_table(tmp_path / "t.zarr")
    assert verify_table(table.path).ok
    codec = table.row_type
    for layer in table.layout.layer_ids:
        values = whole(source, layer)
        stored = np.empty((len(values), codec.width(DIM)), codec.physical)
        scales = None
        if codec.scaling is not None:
            scales = np.empty((len(values), codec.scaling.width(DIM)), codec.scaling.dtype)
            if codec.scaling.per == "layer":
                scales = np.array([codec.layer_scale(float(np.abs(values).max()))], np.float32)
        codec.encode(values, stored, scales)
        expected = np.empty_like(values)
        codec.decode(stored, scales, expected)
        np.testing.assert_array_equal(whole(table, layer), expected)
        np.testing.assert_array_equal(table.rows(layer, [7, 3, 211]), expected[[7, 3, 211]])
        np.testing.assert_array_equal(table.hits(layer), counted(layer))
    assert (table.init, table.dtype) == ("normal", dtype)
    assert table.attributes["init"] == source.attributes["init"]
    assert table.attributes["source"] == {"dtype": "float32", "digest": source.digest}
    assert table.layout.fingerprint == source.layout.fingerprint
    np.testing.assert_array_equal(table.layout.lookup, mapped_layout().lookup)


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_a_conversion_goes_on_where_it_was_broken_off(
    tmp_path: Path, source: TableStore, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(source, tmp_path / "t.zarr", dtype, chunk_rows=50).digest
    out = tmp_path / "u.zarr"
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.ENOSPC)
        with pytest.raises(OutputError, match="No space left"):
            convert(source, out, dtype, chunk_rows=50)
    build(tmp_path / "other.zarr", dim=DIM, tokens=9, seed=5)
    with pytest.raises(OutputError, match="source digest"):
        convert(open_table(tmp_path / "other.zarr"), out, dtype, chunk_rows=50)
    report = convert(source, out, dtype, chunk_rows=50)
    assert 0 < report.resumed < report.chunks
    assert report.digest == expected


def test_a_scale_is_taken_as_given_and_only_where_there_is_one(
    tmp_path: Path, source: TableStore
) -> None:
    convert(source, tmp_path / "t.zarr", "fp8", scale=0.001)
    largest = float(np.abs(whole(open_table(tmp_path / "t.zarr"), 0)).max())
    assert 0.05 < largest <= 0.448
    for dtype, scale, what in (
        ("int8", 0.1, "int8 takes no scale"),
        ("fp8", 0.0, "scale 0"),
        ("fp8", math.nan, "scale nan"),
        ("fp8", -1.0, "scale -1"),
    ):
        with pytest.raises(InputError, match=what):
            conversion(source, dtype, scale=scale)


def test_what_cannot_be_converted_is_refused(source: TableStore) -> None:
    with pytest.raises(InputError, match="is float32 already"):
        conversion(source, "float32")
    with pytest.raises(InputError, match="unknown dtype 'int3'"):
        conversion(source, "int3")


def direct(layer: int, a: np.ndarray, b: np.ndarray) -> Difference:
    """The figures as they are defined, in float64 and all at once."""
    known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    x, y = a[known].astype(np.float64), b[known].astype(np.float64)
    sizes = [np.linalg.norm(rows, axis=1) for rows in (x, y)]
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (x * y).sum(axis=1) / (sizes[0] * sizes[1])
        far = np.linalg.norm(y - x, axis=1) / sizes[0]
    cosine[(sizes[0] == 0) & (sizes[1] == 0)] = 1
    cosine[(sizes[0] == 0) != (sizes[1] == 0)] = 0
    far[(sizes[0] == 0) & (sizes[1] == 0)] = 0
    return Difference(
        layer=layer,
        rows=len(a),
        rmse=float(np.sqrt(np.mean((y - x) ** 2))),
        relative=float(np.linalg.norm(y - x) / np.linalg.norm(x)),
        cosine=float(cosine.mean()),
        worst_row=int(np.flatnonzero(known)[np.argmax(far)]),
        worst_relative=float(far.max()),
        skipped=int((~known).sum()),
    )


def assert_close(found: Difference, expected: Difference) -> None:
    for name in ("layer", "rows", "worst_row", "skipped"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("rmse", "relative", "cosine", "worst_relative"):
        assert math.isclose(getattr(found, name), getattr(expected, name), rel_tol=1e-12), name


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_figures_are_those_of_their_definition(
    tmp_path: Path, source: TableStore, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "t.zarr", dtype)
    table = open_table(tmp_path / "t.zarr")
    monkeypatch.setattr(converting, "PIECE_BYTES", 7 * 4 * DIM)
    monkeypatch.setattr(converting, "_PIECES", 3)
    found = compare_tables(source, table, threads=3)
    assert found == compare_tables(source, table)
    for layer, each in zip((0, 3), found, strict=True):
        assert_close(each, direct(layer, whole(source, layer), whole(table, layer)))


def test_rows_of_zeros_and_of_nan_have_their_place_in_the_figures() -> None:
    a = np.ones((6, 4), np.float32)
    b = a.copy()
    a[1] = b[1] = 0  # zero in both
    b[2, 0] = np.nan
    a[3, 1] = np.inf
    b[4] = 0  # lost
    found = figures(a, b)
    assert_close(found, direct(0, a, b))
    assert (found.skipped, found.worst_row, found.worst_relative) == (2, 4, 1.0)
    a[5] = 0  # came from nowhere: infinitely far
    assert (figures(a, b).worst_row, figures(a, b).worst_relative) == (5, math.inf)
    same = figures(b, b)
    assert (same.rmse, same.worst_row, same.cosine) == (0, -1, 1)
    nothing = figures(a[2:4], b[2:4])
    assert (nothing.skipped, nothing.rmse, nothing.worst_row) == (2, 0, -1)


def figures(a: np.ndarray, b: np.ndarray) -> Difference:
    products = np.empty((len(a), 4))
    kernels.row_products(a, b, products)
    sums = converting._Sums()
    sums.take(0, products)
    return sums.difference(0, len(a), a.shape[1])


@given(rows=st.integers(0, 9), dim=st.integers(1, 40), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_products_of_rows_equal_numpy(rows: int, dim: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.standard_normal((2, rows, dim)).astype(np.float32)
    found = np.empty((rows, 4))
    kernels.row_products(a, b, found)
    x, y = a.astype(np.float64), b.astype(np.float64)
    pairs = ((x, x), (y, y), (x, y), (y - x, y - x))
    expected = np.stack([np.einsum("rd,rd->r", *pair) for pair in pairs], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_tables_of_other_layouts_are_not_compared(tmp_path: Path, source: TableStore) -> None:
    build(tmp_path / "t.zarr", dim=DIM + 1)
    with pytest.raises(MismatchError, match="another layout or width"):
        compare_tables(source, open_table(tmp_path / "t.zarr"))

"""A scan of small tables against figures made row by row from all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table.tables import build, mapped_layout

from engram_cli.errors import ArtifactError
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.table.scan import contents as sampling
from engram_cli.table.scan import source
from engram_cli.table.scan.kernels.rows import bin_of
from engram_cli.table.scan.scan import LayerScan, scan_layer
from engram_cli.table.scan.source import LayerReader
from engram_cli.table.store import TableStore, open_table


def scanned(table: TableStore, layer: int, threads: int = 1) -> LayerScan:
    return scan_layer(LayerReader(table, layer), threads=threads)


def rewrite(table: Path, layer: int, values: np.ndarray) -> None:
    """Put other float32 rows into a table, past its checksums."""
    store = open_table(table)
    for index in range(store.arrays[str(layer)].chunks):
        first, count = store.arrays[str(layer)].span(index)
        file = table / store.arrays[str(layer)].file(index)
        chunk = np.fromfile(file, dtype="<f4").reshape(-1, store.dim)
        chunk[:count] = values[first : first + count]
        chunk.tofile(file)


@pytest.mark.parametrize("dim", [4, 5, 64])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_figures_are_those_of_all_rows(
    tmp_path: Path, dtype: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a range and a piece are a few rows, and heads end inside of chunks."""
    monkeypatch.setattr(source, "RANGE_BYTES", 300)
    monkeypatch.setattr(source, "PIECE_BYTES", 90)
    build(tmp_path / "t.zarr", tokens=7, dtype=dtype, dim=dim)
    table = open_table(tmp_path / "t.zarr")
    for layer in table.layout.layer_ids:
        entry = table.layout.layer(layer)
        hits = table.hits(layer)
        assert hits is not None
        found = scanned(table, layer, threads=2)
        assert found.bins is not None
        for at, (begin, rows) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
            column = found.columns[at]
            values = table.rows(layer, np.arange(begin, begin + rows)).astype(np.float64)
            norms = np.sqrt((values**2).sum(axis=1))
            own = hits[begin : begin + rows]
            usual = norms[norms > 0]
            assert (column.rows, column.zero) == (rows, int((norms == 0).sum()))
            assert column.not_finite == 0
            assert column.mean == pytest.approx(usual.mean(), rel=1e-5)
            assert column.rms == pytest.approx(np.sqrt((usual**2).mean()), rel=1e-5)
            assert column.least == pytest.approx(usual.min(), rel=1e-5)
            assert column.most == pytest.approx(usual.max(), rel=1e-5)
            assert found.bins[at].sum() == len(usual)
            assert column.hit_rows == np.count_nonzero(own)
            assert column.hits == own.sum()
            assert column.max_hits == own.max()
            assert column.hit_mean == pytest.approx(norms[own > 0].mean(), rel=1e-5)
            best = sorted(((-int(h), row) for row, h in enumerate(own) if h))[:10]
            assert found.hottest[at] == tuple((row, -h) for h, row in best)


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "RANGE_BYTES", 300)
    build(tmp_path / "t.zarr", tokens=7)
    table = open_table(tmp_path / "t.zarr")
    one, three = scanned(table, 3), scanned(table, 3, threads=3)
    assert one.duplicates == three.duplicates
    assert np.array_equal(one.bins, three.bins)
    assert (one.columns, one.hottest) == (three.columns, three.hottest)


def test_zero_rows_and_what_is_no_number_are_counted(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", dim=4)
    rows = mapped_layout().layer(0).rows
    values = np.full((rows, 4), 1.0, dtype=np.float32)
    values[:, 0] += np.arange(rows)
    values[3] = 0
    values[5] = [np.nan, 1, 1, 1]
    values[6] = [np.inf, 1, 1, 1]
    values[7] = [3e38, 3e38, 3e38, 3e38]  # beyond float32 is its norm alone
    values[8] = 1e-30
    rewrite(tmp_path / "t.zarr", 0, values)
    scan = scanned(open_table(tmp_path / "t.zarr"), 0)
    column = scan.columns[0]
    assert (column.zero, column.not_finite) == (1, 3)
    assert column.least == pytest.approx(2e-30, rel=1e-5)
    assert scan.bins[0][bin_of(np.float32(2e-30))] == 1
    assert column.hit_rows is None
    assert column.hit_mean is None
    assert scan.hottest[0] == ()


def layout_of(rows: int) -> HashLayout:
    options: dict[str, Any] = {"rows_per_head": rows, "heads": 2}
    return hash_layout("tutorial", vocab_size=40, layers=(0,), orders=(2,), **options)


def test_duplicates_are_found(tmp_path: Path) -> None:
    """All of them, where every row is in the sample."""
    layout = layout_of(2000)
    build(tmp_path / "t.zarr", layout, dim=32)
    rows = layout.layer(0).rows
    values = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
    values[100:400] = values[17]  # 301 of one content
    values[500] = values[600]
    rewrite(tmp_path / "t.zarr", 0, values)
    found = scanned(open_table(tmp_path / "t.zarr"), 0).duplicates
    assert (found.rows, found.distinct, found.distinct_error) == (rows, rows - 301, 0)
    assert found.twin_share == pytest.approx(303 / rows)
    assert [(t.rows, t.first, t.second) for t in found.twins] == [(301, 17, 100), (2, 500, 600)]


def test_a_sample_estimates_what_all_rows_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(20_000)
    build(tmp_path / "t.zarr", layout, dim=16, chunk_rows=8192)
    generator = np.random.default_rng(1)
    rows = layout.layer(0).rows
    values = generator.normal(size=(rows, 16)).astype(np.float32)
    order = generator.permutation(rows)
    values[order[:8000]] = values[order[8000:16000]]
    rewrite(tmp_path / "t.zarr", 0, values)
    monkeypatch.setattr(sampling, "EXACT", 0)
    monkeypatch.setattr(sampling, "SAMPLE", 4000)
    found = scanned(open_table(tmp_path / "t.zarr"), 0).duplicates
    assert found.distinct_error > 0
    assert abs(found.distinct - (rows - 8000)) < 4 * found.distinct_error
    assert found.twin_share == pytest.approx(16000 / rows, abs=0.03)


def test_there_are_never_more_contents_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sampled share is small, hashes that lie low by chance gave a larger estimate."""
    monkeypatch.setattr(sampling, "EXACT", 0)
    monkeypatch.setattr(sampling, "SAMPLE", 50)
    for seed in range(40):
        hashes = np.random.default_rng(seed).integers(0, 2**63, 2000, dtype=np.uint64)
        chosen = np.zeros((2, 2000), dtype=np.uint64)
        chosen[0], chosen[1] = np.arange(2000), hashes
        contents = sampling.Contents(2000)
        contents.add(chosen)
        assert 0 < contents.figures(2000).distinct <= 2000


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", dim=4)
    table = open_table(tmp_path / "t.zarr")
    file = tmp_path / "t.zarr" / "0" / "c.3.0"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=r"c\.3\.0 ends too early"):
        scanned(table, 0)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"c\.3\.0 cannot be read"):
        scanned(table, 0, threads=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4_b32", "fp8_e8m0"])
def test_pieces_change_nothing(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a sample of many rows is taken over from the kernel in small parts."""
    build(tmp_path / "t.zarr", tokens=7, dtype=dtype, dim=32)
    table = open_table(tmp_path / "t.zarr")
    assert LayerReader(table, 3).direct
    whole = scanned(table, 3)
    monkeypatch.setattr(source, "PIECE_BYTES", 90)
    monkeypatch.setattr("engram_cli.table.scan.scan._CHOSEN", 5)
    read = scanned(table, 3)
    assert read.duplicates == whole.duplicates
    assert np.array_equal(read.bins, whole.bins)
    assert (read.columns, read.hottest) == (whole.columns, whole.hottest)

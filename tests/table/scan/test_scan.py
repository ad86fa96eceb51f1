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
from engram_cli.table.codecs import CODECS
from engram_cli.table.scan import alike, likeness, source
from engram_cli.table.scan.kernels.rows import bin_of
from engram_cli.table.scan.scan import LayerScan, scan_layer
from engram_cli.table.scan.source import table_source
from engram_cli.table.store import TableStore, open_table


def scanned(table: TableStore, layer: int, threads: int = 1) -> LayerScan:
    entry = table.layout.layer(layer)
    columns = list(zip(entry.offsets, entry.moduli, strict=True))
    return scan_layer(
        table_source(table, layer), columns, lambda rows: table.rows(layer, rows), threads=threads
    )


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
@pytest.mark.parametrize("dtype", list(CODECS))
def test_figures_are_those_of_all_rows(
    tmp_path: Path, dtype: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a stretch and a piece are a few rows, and heads end inside of chunks."""
    monkeypatch.setattr(source, "STRETCH_BYTES", 300)
    monkeypatch.setattr(source, "PIECE_BYTES", 90)
    build(tmp_path / "t.zarr", tokens=7, dtype=dtype, dim=dim)
    table = open_table(tmp_path / "t.zarr")
    for layer in table.layout.layer_ids:
        entry = table.layout.layer(layer)
        hits = table.hits(layer)
        assert hits is not None
        found = scanned(table, layer, threads=2)
        for column, (begin, rows) in zip(
            found.columns, zip(entry.offsets, entry.moduli, strict=True), strict=True
        ):
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
            assert column.bins.sum() == len(usual)
            assert column.hit_rows == np.count_nonzero(own)
            assert column.hits == own.sum()
            assert column.max_hits == own.max()
            assert column.hit_mean == pytest.approx(norms[own > 0].mean(), rel=1e-5)
            best = sorted(((-int(h), row) for row, h in enumerate(own) if h))[:10]
            assert column.hottest == tuple((row, -h) for h, row in best)


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "STRETCH_BYTES", 300)
    build(tmp_path / "t.zarr", tokens=7)
    table = open_table(tmp_path / "t.zarr")
    one, three = scanned(table, 3), scanned(table, 3, threads=3)
    assert one.likeness == three.likeness
    for a, b in zip(one.columns, three.columns, strict=True):
        assert a.bins.tolist() == b.bins.tolist()
        assert (a.mean, a.rms, a.hottest) == (b.mean, b.rms, b.hottest)


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
    column = scanned(open_table(tmp_path / "t.zarr"), 0).columns[0]
    assert (column.zero, column.not_finite) == (1, 3)
    assert column.least == pytest.approx(2e-30, rel=1e-5)
    assert column.bins[bin_of(np.float32(2e-30))] == 1
    assert column.hit_rows is None
    assert column.hit_mean is None
    assert column.hottest == ()


def layout_of(rows: int) -> HashLayout:
    options: dict[str, Any] = {"rows_per_head": rows, "heads": 2}
    return hash_layout("tutorial", vocab_size=40, layers=(0,), orders=(2,), **options)


def test_twins_and_near_twins_are_found(tmp_path: Path) -> None:
    """All of them, where every row is in the sample."""
    layout = layout_of(2000)
    build(tmp_path / "t.zarr", layout, dim=32)
    generator = np.random.default_rng(0)
    rows = layout.layer(0).rows
    values = generator.normal(size=(rows, 32)).astype(np.float32)
    values[100:400] = values[17]  # 301 of one content
    values[500] = values[600]
    near = generator.choice(np.arange(1000, rows), 400, replace=False)
    values[near[:200]] = values[near[200:]] + generator.normal(0, 0.02, (200, 32))
    rewrite(tmp_path / "t.zarr", 0, values)
    found = scanned(open_table(tmp_path / "t.zarr"), 0).likeness
    assert (found.rows, found.compared) == (rows, rows - 301)
    assert (found.distinct, found.distinct_error) == (rows - 301, 0)
    assert found.twin_share == pytest.approx(303 / rows)
    assert [(t.rows, t.first, t.second) for t in found.twins] == [(301, 17, 100), (2, 500, 600)]
    assert found.near_share == pytest.approx(400 / (rows - 301), rel=0.1)
    pairs = {frozenset(pair) for pair in zip(near[:200].tolist(), near[200:].tolist(), strict=True)}
    assert len(found.near_twins) == 5
    assert all(frozenset((p.first, p.second)) in pairs for p in found.near_twins)
    assert all(0.99 <= p.cosine <= 1 for p in found.near_twins)


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
    monkeypatch.setattr(likeness, "SAMPLE", 4000)
    found = scanned(open_table(tmp_path / "t.zarr"), 0).likeness
    assert found.distinct_error > 0
    assert abs(found.distinct - (rows - 8000)) < 4 * found.distinct_error
    assert found.twin_share == pytest.approx(16000 / rows, abs=0.03)
    assert found.near_share == 0


def planted(path: Path, values: np.ndarray, dtype: str = "float32") -> TableStore:
    """A table of one layer with these rows."""
    count = len(values) // 2 - 200
    layout = layout_of(count)
    build(path, layout, dim=values.shape[1], dtype=dtype, chunk_rows=2**15)
    rewrite(path, 0, values[: layout.layer(0).rows])
    return open_table(path)


@pytest.mark.parametrize("dim", [4, 8, 16])
def test_near_twins_are_found_however_few_signs_a_row_has(
    tmp_path: Path, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place then holds hundreds of rows, and a threshold by chance chose none of the places."""
    monkeypatch.setattr(alike, "MOST_ALIKE", 1000)
    monkeypatch.setattr("engram_cli.table.scan.scan.MOST_ALIKE", 1000)
    monkeypatch.setattr("engram_cli.table.scan.scan._LOOKED_AT", 1024)
    generator = np.random.default_rng(dim)
    values = generator.normal(size=(40_000, dim)).astype(np.float32)
    values[1::20] = values[::20] * 1.001
    table = planted(tmp_path / "t.zarr", values)
    found = scanned(table, 0).likeness
    assert 500 <= found.compared <= 1000
    assert found.near_twins
    assert all(near.cosine >= 0.99 for near in found.near_twins)


def test_near_twins_are_found_where_all_rows_have_the_same_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept ones are then a sample by content, of which no share is told."""
    monkeypatch.setattr(alike, "MOST_ALIKE", 2000)
    monkeypatch.setattr("engram_cli.table.scan.scan.MOST_ALIKE", 2000)
    values = np.random.default_rng(3).uniform(0.01, 1, (20_000, 16)).astype(np.float32)
    values[1::2] = values[::2] * 1.001
    found = scanned(planted(tmp_path / "t.zarr", values), 0).likeness
    assert found.compared == 2000
    assert found.near_share is None
    assert found.near_twins


def test_the_share_of_near_twins_is_that_of_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divided by what the signs part, and no more: rows of a place have 16 signs in common."""
    monkeypatch.setattr(alike, "MOST_ALIKE", 8000)
    monkeypatch.setattr("engram_cli.table.scan.scan.MOST_ALIKE", 8000)
    generator = np.random.default_rng(6)
    values = generator.normal(size=(40_000, 32)).astype(np.float32)
    values[1::5] = values[::5] + generator.normal(0, 0.12, (8000, 32))
    found = scanned(planted(tmp_path / "t.zarr", values), 0).likeness
    units = values[: found.rows] / np.linalg.norm(values[: found.rows], axis=1, keepdims=True)
    last = found.rows // 5 * 5
    cosines = np.sum(units[:last:5] * units[1:last:5], axis=1)
    wanted = 2 * np.count_nonzero(cosines >= 0.99) / found.rows
    assert 0.2 < wanted < 0.4
    assert found.near_share == pytest.approx(wanted, rel=0.1)


def test_what_is_kept_does_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "MOST_ALIKE", 50)
    chosen = np.random.default_rng(4).integers(0, 20, (4, 2000), dtype=np.uint64)
    chosen[0] = np.arange(2000)
    kept = []
    for order in (np.arange(2000), np.random.default_rng(5).permutation(2000)):
        sample = alike.Alike()
        for part in np.array_split(chosen[:, order], 7, axis=1):
            sample.add(part)
        sample.compare(lambda rows: np.ones((len(rows), 4), dtype=np.float32), (4, 4))
        kept.append(sample._kept)
        assert sample._kept.shape[1] == 50
    np.testing.assert_array_equal(*kept)


def test_there_are_never_more_contents_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sampled share is small, hashes that lie low by chance gave a larger estimate."""
    monkeypatch.setattr(likeness, "SAMPLE", 50)
    for seed in range(40):
        hashes = np.random.default_rng(seed).integers(0, 2**63, 2000, dtype=np.uint64)
        chosen = np.zeros((4, 2000), dtype=np.uint64)
        chosen[0], chosen[1] = np.arange(2000), hashes
        contents = likeness.Contents(2000)
        contents.add(chosen)
        distinct, *_ = contents.figures(2000)
        assert 0 < distinct <= 2000


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
    assert table_source(table, 3).direct
    whole = scanned(table, 3)
    monkeypatch.setattr(source, "PIECE_BYTES", 90)
    monkeypatch.setattr("engram_cli.table.scan.scan._CHOSEN", 5)
    read = scanned(table, 3)
    assert read.likeness == whole.likeness
    for a, b in zip(read.columns, whole.columns, strict=True):
        assert a.bins.tolist() == b.bins.tolist()
        assert (a.mean, a.rms, a.hottest) == (b.mean, b.rms, b.hottest)

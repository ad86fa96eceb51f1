"""A sample of rows against all of them: figures within their errors, hits exact, few rows read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table.scan.test_scan import rewrite
from table.tables import build

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.table.scan import sample
from engram_cli.table.scan.sample import is_sampled, scan_sample
from engram_cli.table.scan.scan import LayerScan, scan_layer
from engram_cli.table.scan.source import LayerReader
from engram_cli.table.store import TableStore, open_table

ROWS = 6000  # of each of four heads
READ = 4 * 16 * 16  # 16 groups of 4 runs of 4 rows in each head


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SAMPLED", READ)


def layout_of(rows: int = ROWS) -> HashLayout:
    options: dict[str, Any] = {"rows_per_head": rows, "heads": 2}
    return hash_layout("tutorial", vocab_size=40, layers=(0,), orders=(2, 3), **options)


def both(table: TableStore) -> tuple[LayerScan, LayerScan]:
    reader = LayerReader(table, 0)
    assert is_sampled(reader)
    return scan_sample(reader, threads=2), scan_layer(reader, threads=2)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_figures_lie_within_their_errors(tmp_path: Path, dtype: str) -> None:
    build(tmp_path / "t.zarr", layout_of(), dtype=dtype, dim=32, chunk_rows=5000)
    some, every = both(open_table(tmp_path / "t.zarr"))
    assert (some.read, every.read) == (READ, sum(column.rows for column in every.columns))
    assert some.hottest == every.hottest
    for own, whole in zip(some.columns, every.columns, strict=True):
        assert (own.rows, own.hit_rows, own.hits, own.max_hits) == (
            *(whole.rows, whole.hit_rows, whole.hits, whole.max_hits),
        )
        assert own.read == READ // 4
        assert own.mean is not None
        assert whole.mean is not None
        assert 0 < own.mean_error < 0.02 * own.mean
        assert abs(own.mean - whole.mean) < 5 * own.mean_error
        assert (own.zero, own.not_finite) == (whole.zero, whole.not_finite) == (0, 0)
        assert own.zero_error == pytest.approx(own.rows / (READ // 4))
        assert own.zero_most == pytest.approx(11.98 * own.rows / (READ // 4), rel=0.012)
        assert whole.zero_most == 0
        assert own.least is not None
        assert whole.least is not None
        assert own.least >= whole.least
    assert some.bins is not None
    assert every.bins is not None
    assert np.all(abs(some.bins.sum(axis=1) - every.bins.sum(axis=1)) < 40)  # rounded bin by bin


def test_zero_rows_are_estimated_wherever_they_lie(tmp_path: Path) -> None:
    """Also where they lie together, which makes runs of rows alike: errors grow by it."""
    build(tmp_path / "t.zarr", layout_of(), dim=4)
    table = open_table(tmp_path / "t.zarr")
    generator = np.random.default_rng(3)
    values = generator.normal(size=(table.layout.layer(0).rows, 4)).astype(np.float32)
    values[generator.random(len(values)) < 0.2] = 0
    blocks = np.repeat(generator.random(len(values) // 50 + 1) < 0.2, 50)[: len(values)]
    values[ROWS + 100 :][blocks[ROWS + 100 :]] = np.nan
    rewrite(tmp_path / "t.zarr", 0, values)
    some, every = both(table)
    for own, whole in zip(some.columns, every.columns, strict=True):
        assert abs((own.zero or 0) - (whole.zero or 0)) < 4 * own.zero_error
        assert abs((own.not_finite or 0) - (whole.not_finite or 0)) < 4 * own.not_finite_error
        assert (own.zero or 0) < (own.zero_most or 0) < own.rows
        assert (own.zero_most or 0) >= (whole.zero or 0)
        assert (own.not_finite_most or 0) >= (whole.not_finite or 0)
    errors = [column.not_finite_error for column in some.columns]
    assert min(errors[1:]) > 2 * errors[0]
    assert sum(errors[1:]) > sum(column.zero_error for column in some.columns[1:])


def test_no_more_rows_have_twins_than_the_bound_says(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", layout_of(), dim=4)
    table = open_table(tmp_path / "t.zarr")
    values = np.random.default_rng(3).normal(size=(table.layout.layer(0).rows, 4))
    values = values.astype(np.float32)
    bounds = []
    for twins in (0, 1000, len(values) // 2):
        values[:twins] = values[len(values) - twins :]
        rewrite(tmp_path / "t.zarr", 0, values)
        some, every = both(table)
        assert some.duplicates is not None
        assert every.duplicates is not None
        found = some.duplicates
        assert (found.bound, found.rows, found.distinct_error) == (True, READ, 0)
        assert found.twin_share >= min(1.0, 2 * twins / len(values))
        bounds.append(found.twin_share)
        assert (len(found.twins) > 0) == (found.distinct < READ)
    assert bounds[0] == pytest.approx(6 * 16 / 7 * len(values) / READ**2, rel=0.01)
    assert bounds == sorted(bounds)
    values[:] = values[0]
    rewrite(tmp_path / "t.zarr", 0, values)
    found = both(table)[0].duplicates
    assert found is not None
    assert (found.distinct, found.twin_share) == (1, 1.0)
    assert found.twins[0].rows == READ


def test_what_is_small_is_read_whole(tmp_path: Path) -> None:
    """A head that is not much larger than its share of the sample, and such a layer."""
    assert np.array_equal(sample._drawn(40, 4, [0]), [np.arange(40)])
    drawn = sample._drawn(ROWS, 4, [0])
    assert drawn.shape == (16, 16)
    assert len(np.unique(drawn)) == drawn.size
    assert 0 <= drawn.min() <= drawn.max() < ROWS
    build(tmp_path / "small.zarr", layout_of(1000), dim=4)
    assert not is_sampled(LayerReader(open_table(tmp_path / "small.zarr"), 0))

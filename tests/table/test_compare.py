"""Levels of changes: which rows stand out, and how concentrated the change is; bounds of codecs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engram_cli.commands.diff.ngrams import NgramCounter
from engram_cli.rows import DTYPES
from engram_cli.rows.error_bounds import error_bounds
from engram_cli.table.compare.levels import (
    LEAST,
    LEVELS,
    concentration,
    levels_of,
    norm_of,
    standing_out,
)
from engram_cli.table.compare.rows import measure

WRITTEN = [name for name in DTYPES if name != "float32"] + ["q8_0"]


def counts_of(norms: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(levels_of(norms), minlength=LEVELS)


@given(st.floats(2.0**-19, 2.0**10))
def test_a_level_begins_at_its_norm(norm: float) -> None:
    level = int(levels_of(np.array([norm]))[0])
    assert norm_of(level) <= norm * (1 + 1e-12)
    assert norm < norm_of(level + 1) * (1 + 1e-12)


@pytest.mark.parametrize("edits", [16, 160, 20_000])
@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_edits_stand_out_from_a_training_whether_few_or_many(edits: int, spread: float) -> None:
    random = np.random.default_rng(edits)
    training = np.exp(random.normal(-5, spread, 50_000))
    planted = np.exp(random.normal(0, 0.2, edits))
    cut = standing_out(counts_of(np.concatenate([training, planted])), 8)
    assert cut is not None
    assert training.max() < norm_of(cut) <= planted.min()


@pytest.mark.parametrize(
    ("ngrams", "factor", "found"),
    [(1, 3.5, True), (1, 2.0, False), (2, 2.0, False), (40, 2.0, True), (40, 1.3, False)],
)
def test_many_edits_need_a_narrower_gap_than_few(ngrams: int, factor: float, found: bool) -> None:
    random = np.random.default_rng(ngrams)
    training = np.append(random.uniform(0.01, 1.0, 50_000), 1.0)
    planted = random.uniform(factor, 1.3 * factor, 8 * ngrams)
    planted[0] = factor
    cut = standing_out(counts_of(np.concatenate([training, planted])), 8)
    assert (cut is not None) == found
    if cut is not None:
        assert training.max() < norm_of(cut) <= planted.min()


def test_one_spread_of_changes_has_no_rows_that_stand_out() -> None:
    random = np.random.default_rng(0)
    for norms in (
        np.exp(random.normal(-3, 1.0, 50_000)),
        0.01 * np.sqrt(random.zipf(1.8, 50_000).clip(max=1000)),
        np.full(100, 0.5),
    ):
        assert standing_out(counts_of(norms), 16) is None
    few = np.concatenate([np.full(1000, 0.01), np.full(7, 1.0)])
    assert standing_out(counts_of(few), 8) is None
    assert standing_out(counts_of(few), 7) is not None
    assert standing_out(np.zeros(LEVELS, dtype=np.int64), 1) is None


def test_concentration_is_that_of_the_sorted_changes() -> None:
    norms = np.concatenate([np.full(900, 1.0), np.full(100, 8.0)])
    levels = levels_of(norms)
    change = np.bincount(levels, weights=norms**2, minlength=LEVELS)
    found = concentration(np.bincount(levels, minlength=LEVELS), change)
    assert found is not None
    total = 900 + 100 * 64
    assert np.interp(0.1, *zip(*found.shares, strict=True)) == pytest.approx(6400 / total)
    assert found.half_rows == round(total / 2 / 64)
    assert found.shares[0] == (0.0, 0.0)
    assert found.shares[-1] == (1.0, 1.0)
    nothing = np.zeros(LEVELS)
    assert concentration(nothing.astype(np.int64), nothing) is None


@pytest.mark.parametrize("size", [2.0**-12, 0.02, 1.0, 300.0])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_codec_stores_is_within_its_bound(name: str, size: float) -> None:
    row_type, rows, dim = DTYPES.load(name), 99, 64
    random = np.random.default_rng(3)
    values = random.normal(0, size, (rows, dim)) * random.uniform(0, 2, (rows, 1))
    values = values.astype(np.float32)
    values[1] = 0
    values[2, 5] = 50 * size
    stored = np.empty((rows, row_type.width(dim)), dtype=row_type.physical)
    scales = None
    if row_type.scaling is not None:
        scales = np.empty(row_type.scaling.shape(rows, dim), dtype=row_type.scaling.dtype)
        if row_type.of_layer:
            scales[:] = row_type.layer_scale(float(np.abs(values).max()))
    row_type.encode(values, stored, scales)
    read = np.empty_like(values)
    row_type.decode(stored, scales, read)
    bounds = error_bounds(row_type, read, scales)
    assert bounds.shape == values.shape
    assert np.all(np.abs(read - values) <= bounds)
    # It is no wider than it must be: half of it is exceeded somewhere.
    assert np.any(np.abs(read - values) > bounds / 2)


def test_what_is_not_finite_on_one_side_changed_without_end() -> None:
    before = np.array([[1, np.nan], [1, 2], [np.inf, 1]], dtype=np.float32)
    after = np.array([[1, np.nan], [1, np.inf], [np.inf, 2]], dtype=np.float32)
    found = measure(np.arange(3), before, after, np.full((3, 2), 9, dtype=np.float32))
    assert found.levels.tolist() == [0, LEVELS - 1, LEVELS - 1]
    assert found.norms.tolist() == [0, np.inf, np.inf]
    assert found.levels[1] > LEAST


def test_a_counter_keeps_the_frequent_ngrams_when_there_are_too_many() -> None:
    random = np.random.default_rng(2)
    counter = NgramCounter(2, most=100)
    often = np.array([[1, 2]] * 50 + [[3, 4]] * 30, dtype=np.int32)
    for _ in range(20):
        rare = random.integers(10, 2**20, (30_000, 2)).astype(np.int32)
        counter.add(np.concatenate([often, rare]))
    found = counter.found()
    assert found.dropped
    assert not found.exact.any()
    assert len(found.counts) <= 100
    best = np.argsort(-found.counts.astype(np.int64))[:2]
    assert found.tokens[best].tolist() == [[1, 2], [3, 4]]
    assert found.counts[best].tolist() == [1000, 600]

"""Duplicate rows against NumPy: exact up to a bound, and estimates with the errors they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from table.scan.test_scan import layout_of, rewrite, scanned
from table.tables import build

from engram_cli.table.scan import contents, sample
from engram_cli.table.scan.contents import Contents, Duplicates
from engram_cli.table.store import open_table

ROWS = 20_000


def skewed(generator: np.random.Generator, rows: int = ROWS) -> NDArray[np.int64]:
    """Return the content of each row: most have one of their own, the rest groups of any size."""
    sizes = np.minimum(generator.zipf(1.5, 60), 300)
    content = np.arange(rows) + len(sizes)
    at = generator.permutation(rows)[: sizes.sum()]
    content[at] = np.repeat(np.arange(len(sizes)), sizes)[: len(at)]
    return content


def figures(content: NDArray[np.int64], generator: np.random.Generator, step: int) -> Duplicates:
    """Return the figures of rows whose contents have random hashes, taken `step` at a time."""
    hashes = generator.integers(1, 2**64, content.max() + 1, dtype=np.uint64)[content]
    found = Contents(len(content))
    for first in range(0, len(content), step):
        rows = np.arange(first, min(first + step, len(content)), dtype=np.uint64)
        found.add(np.stack([rows, hashes[first : first + step]]))
    return found.figures(len(content))


def truth(content: NDArray[np.int64]) -> tuple[int, float, list[tuple[int, int, int]]]:
    """Return the distinct contents, the share of rows with a twin, and the five largest groups."""
    _, of_row, sizes = np.unique(content, return_inverse=True, return_counts=True)
    groups = []
    for one in np.flatnonzero(sizes > 1):
        own = np.flatnonzero(of_row == one)
        groups.append((len(own), int(own[0]), int(own[1])))
    groups.sort(key=lambda group: (-group[0], group[1]))
    return len(sizes), float(sizes[sizes > 1].sum() / len(content)), groups[:5]


@pytest.mark.parametrize("seed", range(5))
def test_up_to_a_bound_all_figures_are_those_of_numpy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    content = skewed(generator)
    found = figures(content, generator, step=700)
    distinct, share, groups = truth(content)
    assert found.contents_read == 1
    assert (found.distinct, found.distinct_error, found.twin_share_error) == (distinct, 0, 0)
    assert found.twin_share == pytest.approx(share)
    assert [(own.rows, own.first, own.second) for own in found.twins] == groups


@pytest.mark.parametrize("largest", [2, 40, 1000])
def test_errors_of_estimates_hold_for_groups_of_any_size(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of contents has a large group whole or not at all."""
    monkeypatch.setattr(contents, "EXACT", 0)
    monkeypatch.setattr(contents, "SAMPLE", 400)
    generator = np.random.default_rng(largest)
    off: list[tuple[float, float]] = []
    for _ in range(300):
        sizes = generator.integers(2, largest + 1, 8000 // largest)
        repeated = np.repeat(np.arange(len(sizes)), sizes)
        content = np.concatenate([repeated, np.arange(len(sizes), ROWS + len(sizes))])[:ROWS]
        found = figures(content, generator, step=ROWS)
        share, distinct = len(repeated) / ROWS, ROWS - len(repeated) + len(sizes)
        assert found.contents_read == pytest.approx(400 / ROWS)
        off.append(
            (
                (found.twin_share - share) / found.twin_share_error,
                (found.distinct - distinct) / found.distinct_error,
            )
        )
    scores = np.array(off)
    assert np.all(abs(scores.mean(axis=0)) < 0.25)
    assert np.all(abs(np.sqrt((scores**2).mean(axis=0)) - 1) < 0.15)
    assert abs(scores).max() < 4.5


def test_a_sample_without_any_row_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """One content of all rows is in the sample by a chance of 1 in 50."""
    monkeypatch.setattr(contents, "EXACT", 0)
    monkeypatch.setattr(contents, "SAMPLE", 400)
    found = figures(np.zeros(ROWS, dtype=np.int64), np.random.default_rng(0), step=ROWS)
    assert (found.distinct, found.twin_share) == (1, 1.0)
    assert found.distinct_error > 0
    nothing = Contents(ROWS).figures(0)
    assert (nothing.distinct, nothing.distinct_error) == (0, 0)
    assert (nothing.twin_share, nothing.twin_share_error) == (0, 0)


def test_the_bound_of_a_sample_of_rows_holds_for_large_groups() -> None:
    """Equal pairs alone would leave room for all rows."""
    generator = np.random.default_rng(4)
    for _ in range(20):
        content = np.arange(400_000)
        content[:24_000] = np.repeat(np.arange(100), 240)
        chosen = generator.permutation(content)[:16_384]
        _, sizes = np.unique(chosen, return_counts=True)
        taken = Contents(0)
        taken.add(np.stack([np.arange(len(chosen)), chosen]).astype(np.uint64))
        assert sorted(taken.repeated) == sorted(sizes[sizes > 1])
        found = sample._bounded(taken.figures(len(chosen)), taken.repeated, len(content))
        assert found.bound
        assert 24_000 / len(content) <= found.twin_share < 0.4


def test_a_full_scan_tells_whether_it_estimates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(2000)
    build(tmp_path / "t.zarr", layout, dim=4)
    rows = layout.layer(0).rows
    generator = np.random.default_rng(0)
    content = skewed(generator, rows)
    values = generator.normal(size=(content.max() + 1, 4)).astype(np.float32)
    rewrite(tmp_path / "t.zarr", 0, values[content])
    exact = scanned(open_table(tmp_path / "t.zarr"), 0, threads=2).duplicates
    distinct, share, groups = truth(content)
    assert exact is not None
    assert (exact.distinct, exact.twin_share_error) == (distinct, 0)
    assert exact.twin_share == pytest.approx(share)
    assert [(own.rows, own.first, own.second) for own in exact.twins] == groups
    monkeypatch.setattr(contents, "EXACT", 1000)
    monkeypatch.setattr(contents, "SAMPLE", 500)
    some = scanned(open_table(tmp_path / "t.zarr"), 0).duplicates
    assert some is not None
    assert some.contents_read == pytest.approx(500 / rows)
    assert 0 < abs(some.twin_share - share) < 4 * some.twin_share_error

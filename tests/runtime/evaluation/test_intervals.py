"""The interval over documents: Student's t against a table, and how often it holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engram_cli.runtime.evaluation.intervals import Interval, ratio_interval, student_t


@pytest.mark.parametrize(
    ("freedom", "level", "wanted"),
    [
        (1, 0.95, 12.706205),
        (2, 0.95, 4.302653),
        (5, 0.99, 4.032143),
        (10, 0.9, 1.812461),
        (30, 0.95, 2.042272),
        (10**6, 0.95, 1.959966),
    ],
)
def test_quantiles_are_the_tables(freedom: float, level: float, wanted: float) -> None:
    assert student_t(level, freedom) == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize("freedom", [1.1, 1.7, 3.5])
def test_quantiles_between_whole_numbers(freedom: float) -> None:
    drawn = np.abs(np.random.default_rng(0).standard_t(freedom, 1_000_000))
    inside = np.mean(drawn < student_t(0.95, freedom))
    assert inside == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 1_000_000))


def interval_of(sums: NDArray[np.float64], tokens: NDArray[np.float64]) -> Interval:
    return ratio_interval(
        sums.sum(), tokens.sum(), (sums**2).sum(), (sums * tokens).sum(), (tokens**2).sum()
    )


@pytest.mark.parametrize(("documents", "spread"), [(8, 0.0), (8, 0.6), (30, 1.0), (200, 1.2)])
def test_it_holds_the_truth_as_often_as_it_says(documents: int, spread: float) -> None:
    """Documents of very different lengths, whose tokens depend on each other."""
    rng = np.random.default_rng(0)
    trials, held, truth = 1000, 0, -0.05
    for _ in range(trials):
        tokens = np.ceil(np.exp(rng.normal(5.0, spread, documents)))
        shift = rng.normal(0.0, 0.04, documents)  # of a whole document
        noise = rng.normal(0.0, 0.5, documents) * np.sqrt(tokens)
        found = interval_of(tokens * (truth + shift) + noise, tokens)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.93 <= held / trials <= 0.972


def test_no_interval_without_documents_to_compare() -> None:
    one = np.array([5.0])
    assert interval_of(one, np.array([100.0])) == Interval(mean=0.05)
    two = interval_of(np.array([1.0, 2.0]), np.array([1.0, 99.0]))
    assert two == Interval(mean=0.03)
    assert not two.excludes_zero
    assert ratio_interval(0.0, 0.0, 0.0, 0.0, 0.0) == Interval(mean=0.0)
    clear = interval_of(np.array([1.0, 1.1, 0.9]), np.array([10.0, 10.0, 10.0]))
    assert clear.excludes_zero
    assert clear.error == pytest.approx(0.1 / np.sqrt(3) / 10)

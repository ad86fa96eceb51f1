"""The most rows of a kind that a head may have, by a sample: bounds hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from engram_cli.table.scan.sample import GROUPS, RUN, _drawn, most_of

ROWS = 65_536
READ = 16 * GROUPS * RUN  # what _drawn takes of one of 64 columns


@pytest.mark.parametrize("together", [1, 2, 4, 30])
@pytest.mark.parametrize("stretches", [3, 20, 90])
def test_bounds_of_rare_rows_hold_wherever_they_lie(stretches: int, together: int) -> None:
    """Rows that lie alone, in runs as they are read, and in longer ones."""
    generator = np.random.default_rng([stretches, together])
    held, ratios, tries = 0, [], 400
    for attempt in range(tries):
        rare = np.zeros(ROWS, dtype=bool)
        for first in generator.integers(0, ROWS - together, stretches):
            rare[first : first + together] = True
        read = _drawn(ROWS, 64, [attempt, stretches])
        assert read.size == READ
        runs = rare[read].reshape(-1, RUN).sum(axis=1)
        most = most_of(int(runs.sum()), float((runs**2).sum())) * ROWS / READ
        held += most >= rare.sum()
        ratios.append(most / rare.sum())
    assert held / tries >= 0.95
    assert np.median(ratios) < 1 + 30 * ROWS / READ / (stretches * together)  # and says something


@pytest.mark.parametrize(
    ("met", "squares", "most"),
    # By the gamma distribution: 4 * 2.996; of 8 in runs of 4 as of 2 single ones, 4 * 6.296.
    [(0, 0, 11.98), (8, 32, 25.18), (400, 1600, 469.0)],
)
def test_bounds_are_those_of_a_weighted_poisson_count(
    met: int, squares: float, most: float
) -> None:
    assert most_of(met, squares) == pytest.approx(most, rel=0.012)

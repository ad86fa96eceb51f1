"""The hottest rows of several layers: those that a sort would choose."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engram_cli.runtime.tiers import hot_set as module
from engram_cli.runtime.tiers.hot_set import hottest

Hits = NDArray[np.uint32]


def sorted_out(hits: Mapping[int, Hits], count: int) -> dict[int, list[int]]:
    """The plain twin: hits downwards, row number, layer."""
    every = sorted(
        (-int(number), row, place, layer)
        for place, (layer, own) in enumerate(hits.items())
        for row, number in enumerate(own)
        if number
    )[: max(count, 0)]
    return {layer: sorted(row for _, row, _, own in every if own == layer) for layer in hits}


NUMBERS = st.integers(0, 3) | st.sampled_from([65535, 65536, 65537, 2**32 - 1])
LAYER = st.lists(NUMBERS, max_size=30)


@given(layers=st.lists(LAYER, min_size=1, max_size=3), count=st.integers(0, 70))
@settings(max_examples=300, deadline=None)
def test_it_is_what_a_sort_chooses(layers: list[list[int]], count: int) -> None:
    hits = {9 - at: np.array(own, dtype=np.uint32) for at, own in enumerate(layers)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HITS_PIECE_ROWS", 4)
        found = hottest(hits, count)
    expected = sorted_out(hits, count)
    assert {layer: own.tolist() for layer, own in found.rows.items()} == expected
    assert all(own.dtype == np.int64 for own in found.rows.values())
    total = sum(map(sum, layers))
    caught = sum(int(hits[layer][row]) for layer, own in expected.items() for row in own)
    assert found.caught == (caught / total if total else None)


def test_many_rows_of_real_proportions() -> None:
    generator = np.random.default_rng(0)
    hits = {layer: (generator.pareto(1.0, 50_000) * 3).astype(np.uint32) for layer in (1, 15)}
    for count in (1, 1000, 30_000, 10**6):
        found = hottest(hits, count).rows
        expected = sorted_out(hits, count)
        assert {layer: own.tolist() for layer, own in found.items()} == expected

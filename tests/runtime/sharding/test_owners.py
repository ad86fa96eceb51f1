"""Which rank owns a row, compared with the definition by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engram_cli.errors import InputError
from engram_cli.runtime.sharding.owners import by_owner, count_at, index_at_owner, owner_of


@given(rows=st.integers(0, 300), world=st.integers(1, 9))
def test_the_parts_of_all_ranks_are_the_table(rows: int, world: int) -> None:
    parts = [np.arange(rank, rows, world) for rank in range(world)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))
    for rank, part in enumerate(parts):
        assert len(part) == count_at(rows, rank, world)
        assert (owner_of(part, world) == rank).all()
        assert np.array_equal(index_at_owner(part, world), np.arange(len(part)))
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_tensors_and_ints_are_as_arrays() -> None:
    rows = torch.tensor([0, 1, 2, 2**33 + 5])
    for world in (1, 2, 3, 8):
        assert owner_of(rows, world).tolist() == [owner_of(row, world) for row in rows.tolist()]
        index = index_at_owner(rows, world)
        assert index.tolist() == [index_at_owner(row, world) for row in rows.tolist()]


@given(st.lists(st.integers(0, 2**40), max_size=50), st.integers(1, 5))
def test_rows_by_owner_keep_their_order(rows: list[int], world: int) -> None:
    given = torch.tensor(rows, dtype=torch.int64)
    order, counts = by_owner(given, world)
    wanted = [row for rank in range(world) for row in rows if row % world == rank]
    assert given[order].tolist() == wanted
    assert counts.tolist() == [sum(row % world == rank for row in rows) for rank in range(world)]


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world(rank: int) -> None:
    with pytest.raises(InputError, match=f"rank {rank} of 2"):
        count_at(10, rank, 2)

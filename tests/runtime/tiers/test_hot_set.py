"""The hot set says of every row whether it is hot, and its place among the hot rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engram_cli.errors import InputError
from engram_cli.runtime.tiers import hot_set as module
from engram_cli.runtime.tiers.hot_set import hot_set, hot_set_bytes


def expected(hot: np.ndarray, rows: int) -> torch.Tensor:
    ranks = np.full(rows, -1, dtype=np.int64)
    ranks[hot] = np.arange(len(hot))
    return torch.from_numpy(ranks)


@given(rows=st.integers(1, 700), seed=st.integers(0, 99), share=st.sampled_from([0, 0.05, 0.6, 1]))
def test_every_row_has_its_rank(rows: int, seed: int, share: float) -> None:
    hot = np.flatnonzero(np.random.default_rng(seed).random(rows) < share)
    found = hot_set(hot, rows)
    assert torch.equal(found.rank(torch.arange(rows)), expected(hot, rows))
    assert found.count == len(hot)
    assert found.nbytes == hot_set_bytes(rows)


def test_it_is_marked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE_ROWS", 256)
    hot = np.array([0, 31, 32, 127, 128, 255, 256, 511, 999])
    found = hot_set(hot, 1000)
    assert torch.equal(found.rank(torch.arange(1000)), expected(hot, 1000))


def test_rows_of_any_shape() -> None:
    found = hot_set(np.array([3, 5]), 9)
    assert found.rank(torch.tensor([[[5, 0], [3, 8]]])).tolist() == [[[1, -1], [0, -1]]]


def test_a_row_takes_a_bit_and_a_quarter() -> None:
    assert hot_set_bytes(2**20) * 8 == 1.25 * 2**20


@pytest.mark.parametrize("hot", [[3, 2], [1, 1], [-1, 4], [2, 10]])
def test_rows_out_of_order_or_range_are_refused(hot: list[int]) -> None:
    with pytest.raises(InputError, match="ascending row numbers below 10"):
        hot_set(np.array(hot), 10)

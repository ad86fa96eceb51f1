"""Inits depend on seed, layer and row alone; the normal one equals its plain twin to the bit."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table import plain

from engram_cli.commands.requests.tables import CORPUS_INITS
from engram_cli.errors import InputError
from engram_cli.table.inits import INITS, kernels, make_init
from engram_cli.table.inits.normal import stream_key

# Row 0 of layer 1, seed 0, std 1, dim 4; docs/reference/table-format.md has the same.
FIRST_VALUES = ["-3.6056433", "-1.0387167", "0.17374244", "0.043898277"]
FIRST_KEY = 3069472533636442495

# The others work in passes, and have their own tests.
PLAIN = [name for name in INITS if name not in CORPUS_INITS]


def rows_of(
    init: str, layer: int, dim: int, first: int, count: int, **options: float
) -> np.ndarray:
    out = np.empty((count, dim), dtype=np.float32)
    filler = make_init(init, **options).filler(layer, dim)
    if filler is None:
        return np.zeros_like(out)
    filler(first, out)
    return out


@pytest.mark.parametrize("init", PLAIN)
@given(cuts=st.lists(st.integers(1, 199), max_size=4), dim=st.integers(1, 9), data=st.data())
@settings(max_examples=25, deadline=None)
def test_rows_are_the_same_in_any_pieces_and_order(
    init: str, cuts: list[int], dim: int, data: st.DataObject
) -> None:
    whole = rows_of(init, 3, dim, 1000, 200)
    bounds = sorted({0, 200, *cuts})
    pieces = list(pairwise(bounds))
    out = np.full_like(whole, np.nan)
    for begin, end in data.draw(st.permutations(pieces)):
        out[begin:end] = rows_of(init, 3, dim, 1000 + begin, end - begin)
    assert out.tobytes() == whole.tobytes()


@given(
    key=st.integers(0, 2**64 - 1),
    first=st.one_of(st.integers(0, 2**40), st.just(2**64 - 3)),
    count=st.sampled_from([1, 2, 2047, 2048, 2049, 5000]),
    std=st.floats(2**-20, 2**16, width=32),
)
@settings(max_examples=40, deadline=None)
def test_the_kernel_equals_the_plain_twin(key: int, first: int, count: int, std: float) -> None:
    fast, slow = np.empty(2 * count, np.float32), np.empty(2 * count, np.float32)
    kernels.normal(np.uint64(key), np.uint64(first), np.float32(std), fast)
    plain.normal(key, first, np.float32(std), slow)
    assert fast.tobytes() == slow.tobytes()


def test_extreme_words_give_finite_values_of_the_exact_formula() -> None:
    edges = [0, 1, 2, 2**22, 2**23 - 1, 2**23, 2**24 + 1, 2**29 - 1, 2**29, 2**30 - 1, 2**30]
    edges += [0x5A82799A, 0x5A827999, 2**31 - 200, 2**31 - 1]
    halves = np.array([*edges, *(edge - 2**31 for edge in edges)], dtype=np.int32)
    low, high = (half.reshape(-1).copy() for half in np.meshgrid(halves, halves))
    out = np.empty(2 * len(low), dtype=np.float32)
    kernels.pairs(low, high, np.float32(1), out)
    u = ((low & 0x7FFFFFFF) + 0.5) / 2**31
    radius = np.sqrt(-2 * np.log(u))
    turn = np.pi / 2 * ((high & 0x3FFFFFFF) - 2**29 + 0.5) / 2**30
    cosine = radius * np.cos(turn) * np.where(high < 0, -1, 1)
    sine = radius * np.sin(turn)
    swap = (high & 2**30) != 0
    expected = np.stack([np.where(swap, sine, cosine), np.where(swap, cosine, sine)], axis=1)
    # Where u is near 1 float32 has no more than 24 bits of it, and the radius half of those.
    np.testing.assert_allclose(out.reshape(-1, 2), expected, atol=1.5e-4)
    certain = u < 0.9
    np.testing.assert_allclose(out.reshape(-1, 2)[certain], expected[certain], atol=1.5e-5)


def test_the_values_are_normal() -> None:
    values = rows_of("normal", 1, 64, 0, 2**15, std=1.0).astype(np.float64).reshape(-1)
    count = len(values)
    assert abs(values.mean()) < 4 / math.sqrt(count)
    assert abs(values.std() - 1) < 4 / math.sqrt(2 * count)
    assert abs((values**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / count)
    values.sort()
    cdf = torch.special.ndtr(torch.from_numpy(values)).numpy()
    places = np.arange(count)
    distance = max(np.abs(cdf - places / count).max(), np.abs(cdf - (places + 1) / count).max())
    assert distance < 1.63 / math.sqrt(count)  # Kolmogorov and Smirnov at 1 %
    assert 4.5 < -values[0] < 6.7
    assert 4.5 < values[-1] < 6.7


def test_rows_columns_layers_and_seeds_are_independent() -> None:
    base = rows_of("normal", 1, 64, 0, 4096, std=1.0)
    others = {
        "another layer": rows_of("normal", 2, 64, 0, 4096, std=1.0),
        "another seed": rows_of("normal", 1, 64, 0, 4096, std=1.0, seed=1),
        "the next row": rows_of("normal", 1, 64, 1, 4096, std=1.0),
        "the next column": np.roll(base, 1, axis=1),
        "the pair's other value": base.reshape(-1, 2)[:, ::-1].reshape(base.shape),
    }
    for name, other in others.items():
        for power in (1, 2):
            one, two = base**power, other**power
            correlation = np.corrcoef(one.reshape(-1), two.reshape(-1))[0, 1]
            assert abs(correlation) < 4.5 / math.sqrt(base.size), (name, power)


def test_the_published_values() -> None:
    row = rows_of("normal", 1, 4, 0, 1, std=1.0)[0]
    assert row.tolist() == [float(np.float32(value)) for value in FIRST_VALUES]
    assert stream_key(0, 1) == FIRST_KEY


def test_zeros_need_no_filler() -> None:
    assert make_init("zeros").filler(0, 8) is None


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("normal", {"std": 0.0}, "std 0.0"),
        ("normal", {"std": math.nan}, "std nan"),
        ("normal", {"seed": -1}, "seed -1"),
        ("normal", {"seed": 2**64}, "seed 18446744073709551616"),
        ("zeros", {"std": 1.0}, "has no std"),
        ("ones", {}, "unknown init 'ones'"),
    ],
)
def test_what_an_init_cannot_be_is_refused(name: str, options: dict, what: str) -> None:
    with pytest.raises(InputError, match=what):
        make_init(name, **options)

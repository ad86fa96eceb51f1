"""The codecs with scales: kernels equal their twins, and what docs/reference/table-format says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import codec_reference as reference

from engram_cli.rows import DTYPES
from engram_cli.rows.codecs import kernels
from engram_cli.rows.dtypes import RowType

E4M3: Any = DTYPES.load("fp8").items.values
SCALED = [name for name in DTYPES if DTYPES.load(name).scaling is not None]
OWN = [name for name in SCALED if DTYPES.load(name).scaling.per != "layer"]
FP8 = ("fp8", "fp8_e8m0")


def coded(codec: RowType, values: np.ndarray, scale: float | None = None) -> tuple[Any, Any]:
    """Stored rows and scales."""
    rows, dim = values.shape
    stored = np.empty((rows, codec.width(dim)), dtype=codec.physical)
    if codec.scaling.per == "layer":
        finite = np.abs(values)[np.isfinite(values)]
        largest = float(finite.max(initial=0))
        scales = np.array([scale or codec.layer_scale(largest)], dtype=np.float32)
    else:
        scales = np.empty((rows, codec.scaling.width(dim)), dtype=codec.scaling.dtype)
    codec.encode(values, stored, scales)
    return stored, scales


def decoded(codec: RowType, stored: np.ndarray, scales: np.ndarray, dim: int) -> np.ndarray:
    values = np.empty((len(stored), dim), dtype=np.float32)
    codec.decode(stored, scales, values)
    return values


def some_rows(dim: int, seed: int = 0, rows: int = 300) -> np.ndarray:
    """Rows of every magnitude; some zero, some with NaN and infinity, some equal throughout."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, dim)).astype(np.float32)
    values *= np.ldexp(np.float32(1), generator.integers(-148, 124, (rows, 1))).astype(np.float32)
    values[::7] = generator.standard_normal(values[::7].shape) * 0.02
    values[::11] = 0
    values[5::13, ::2] *= np.float32(1e-3)
    values[3::17] = values[3::17, :1]
    values[4::19, dim // 2] = np.nan
    values[6::19, dim // 3] = -np.inf
    return values


CODES = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("dim", [1, 5, 32, 33, 64])
def test_what_was_read_is_written_as_the_same_bytes(name: str, dim: int) -> None:
    codec = DTYPES.load(name)
    for seed in range(20):
        stored, scales = coded(codec, some_rows(dim, seed))
        values = decoded(codec, stored, scales, dim)
        again, scales_again = coded(codec, values, float(scales[0]) if len(scales) == 1 else None)
        assert again.tobytes() == stored.tobytes()
        assert scales_again.tobytes() == scales.tobytes()


@pytest.mark.parametrize("name", OWN)
@given(bits=st.lists(CODES, min_size=1, max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_row_comes_back_as_it_was_read(name: str, bits: list[int]) -> None:
    codec = DTYPES.load(name)
    values = np.array([bits], dtype=np.uint32).view(np.float32)
    stored, scales = coded(codec, values)
    again, scales_again = coded(codec, decoded(codec, stored, scales, values.shape[1]))
    assert again.tobytes() == stored.tobytes()
    assert scales_again.tobytes() == scales.tobytes()


@pytest.mark.parametrize("name", SCALED)
def test_not_finite_becomes_nan_and_nothing_else_does(name: str) -> None:
    values = some_rows(37)
    codec = DTYPES.load(name)
    back = decoded(codec, *coded(codec, values), 37)
    np.testing.assert_array_equal(np.isnan(back), ~np.isfinite(values))
    assert not np.isinf(back).any()


@pytest.mark.parametrize("name", SCALED)
def test_a_row_of_zeros_is_zero_bytes(name: str) -> None:
    """So that a hole of a file, and the filling of the last chunk, are rows of zeros."""
    codec = DTYPES.load(name)
    stored, scales = coded(codec, np.zeros((3, 33), np.float32))
    assert not stored.view(np.uint8).any()
    if codec.scaling.per != "layer":
        assert not scales.view(np.uint8).any()
    assert not decoded(codec, stored, np.zeros_like(scales), 33).any()


# Half a step at the top of a block or row over its largest size, and a little for the scale.
WORST = {
    "fp8_e8m0": 0.0625,
    "int8": 0.00394,
    "int8_b32": 0.00396,
    "int4": 0.0715,
    "int4_b32": 0.072,
}


@pytest.mark.parametrize("name", OWN)
def test_no_value_is_farther_off_than_half_a_step(name: str) -> None:
    codec = DTYPES.load(name)
    values = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float32) * 0.02
    back = decoded(codec, *coded(codec, values), 64)
    block = codec.scaling.block or 64
    tops = np.abs(values).reshape(-1, block).max(axis=1, keepdims=True)
    share = np.abs(back - values).reshape(-1, block) / tops
    assert share.max() <= WORST[name]
    assert share.max() > WORST[name] / 2  # the bound says something


@pytest.mark.parametrize("name", FP8)
def test_e4m3_equals_torch(name: str) -> None:
    values = np.random.default_rng(2).standard_normal((500, 64)).astype(np.float32)
    codec = DTYPES.load(name)
    stored, scales = coded(codec, values)
    factors = np.repeat(codec.widen(scales).reshape(len(scales), -1), 32, axis=1)
    exact = values / (factors[0, 0] if name == "fp8" else factors)
    torch_items = torch.from_numpy(exact).to(torch.float8_e4m3fn).view(torch.uint8)
    np.testing.assert_array_equal(stored, torch_items.numpy())


def test_every_e4m3_and_e8m0_is_read_as_published() -> None:
    """value = fp8 * 2**(e - 127), computed in float32, then rounded once to bfloat16."""
    codec = DTYPES.load("fp8_e8m0")
    items = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    values = decoded(codec, items, scales, 256)
    fp8 = torch.from_numpy(items).view(torch.float8_e4m3fn).float()
    powers = torch.from_numpy(scales[:, :1]).view(torch.float8_e8m0fnu).float()
    expected = fp8 * powers
    np.testing.assert_array_equal(values, expected.numpy())
    np.testing.assert_array_equal(E4M3, fp8[0].numpy())


def test_foreign_fp8_scales_are_written_as_equal_values() -> None:
    """A published block need not have the least scale; written again it has, and equal values."""
    codec = DTYPES.load("fp8_e8m0")
    generator = np.random.default_rng(3)
    items = generator.integers(0, 256, (2000, 32), dtype=np.uint8)
    items[items & 127 == 127] = 0
    items &= generator.choice([0x8F, 0xBF, 0xFF], (2000, 1)).astype(np.uint8)
    scales = generator.integers(20, 200, (2000, 1), dtype=np.uint8)
    values = decoded(codec, items, scales, 32)
    again, chosen = coded(codec, values)
    assert (chosen <= scales).all()
    assert (chosen < scales).any()
    np.testing.assert_array_equal(decoded(codec, again, chosen, 32), values)


@pytest.mark.parametrize("name", ["fp8_e8m0"])
def test_the_scale_is_the_least_that_does_not_saturate(name: str) -> None:
    codec = DTYPES.load(name)
    sizes = np.array([448, 464, np.nextafter(np.float32(464), np.float32(500)), 480, 1, 2.0**-126])
    _, scales = coded(codec, np.repeat(sizes.astype(np.float32)[:, None], 32, axis=1))
    assert scales[:, 0].tolist() == [127, 127, 128, 128, 119, 0]


def test_sizes_past_the_scale_of_a_layer_saturate() -> None:
    codec = DTYPES.load("fp8")
    values = np.array([[1.0, 447, 464, 500, -1e30, np.inf]], dtype=np.float32)
    stored, scales = coded(codec, values, 1.0)
    assert decoded(codec, stored, scales, 6)[0, :5].tolist() == [1, 448, 448, 448, -448]
    assert np.isnan(decoded(codec, stored, scales, 6)[0, 5])


@pytest.mark.parametrize(("name", "limit"), [("int8_b32", 127), ("int4_b32", 7)])
def test_sizes_past_the_largest_float16_scale_saturate(name: str, limit: int) -> None:
    codec = DTYPES.load(name)
    stored, scales = coded(codec, np.full((1, 32), -1e30, np.float32))
    assert scales.tolist() == [[65504]]
    assert (decoded(codec, stored, scales, 32) == -65504.0 * limit).all()


def test_two_int4_share_a_byte_the_first_in_the_lower_half() -> None:
    codec = DTYPES.load("int4")
    stored, scales = coded(codec, np.array([[7, -7, 1, -1, 3]], dtype=np.float32))
    assert stored.tobytes().hex() == "97f103"
    assert scales.tolist() == [[1]]


SIZES = st.tuples(st.integers(0, 5), st.integers(1, 70), st.sampled_from([1, 8, 32, 70]))


@given(sizes=SIZES, seed=st.integers(0, 2**32), wild=st.booleans())
@settings(max_examples=150, deadline=None)
def test_kernels_equal_their_twins(sizes: tuple[int, int, int], seed: int, wild: bool) -> None:
    rows, dim, block = sizes
    generator = np.random.default_rng(seed)
    if wild:
        values = generator.integers(0, 2**32, rows * dim, dtype=np.uint32).view(np.float32)
    else:
        values = generator.standard_normal(rows * dim).astype(np.float32)
    blocks = rows * -(-dim // block)
    tops = equal("block_tops", values, dim, block, out=np.empty(blocks, np.float32))
    for divisor in (448, 127, 7):
        scales = tops / np.float32(divisor)
        items = equal("to_e4m3", values, scales, dim, block, out=empty(rows * dim))
        equal("from_bytes", items, E4M3, scales, dim, block, out=np.empty_like(values))
        equal("to_integers", values, scales, dim, block, min(divisor, 127), out=empty(rows * dim))
    packed = equal("to_nibbles", items, dim, out=empty(rows * -(-dim // 2)))
    equal("from_nibbles", packed, dim, out=empty(rows * dim))
    exponents = np.arange(256, dtype=np.uint8)
    equal("powers_of_two", exponents, out=np.empty(256, np.float32))
    halves = generator.integers(0, 2**16, 500, dtype=np.uint16)
    equal("from_float16", halves, out=np.empty(500, np.float32))


def empty(size: int) -> np.ndarray:
    return np.empty(size, dtype=np.uint8)


def equal(name: str, *arguments: Any, out: np.ndarray) -> np.ndarray:
    """What the kernel gives, after its twin gave the same."""
    twin = np.full_like(out, 77)
    with np.errstate(all="ignore"):
        getattr(reference, name)(*arguments, twin)
        getattr(kernels, name)(*arguments, out)
    np.testing.assert_array_equal(out, twin)
    return out

"""Every codec keeps its contract; the 16-bit floats round as IEEE and as torch do."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_cli.errors import InputError
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType

FLOATS = ("float32", "float16", "bfloat16")
HALVES = ("float16", "bfloat16")
EDGES = [0, 1, 0x7FFFFF, 0x800000, 0x33000000, 0x33000001, 0x387FE000, 0x387FF000, 0x38800000]
EDGES += [0x3F800000, 0x3F808000, 0x3F818000, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x47800000]
EDGES += [0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]


def encode(codec: RowType, values: np.ndarray) -> np.ndarray:
    out = np.empty((len(values), codec.width(values.shape[1])), dtype=codec.physical)
    codec.encode(values, out, None)
    return out


def decode(codec: RowType, stored: np.ndarray) -> np.ndarray:
    values = np.empty(stored.shape, dtype=np.float32)
    codec.decode(stored, None, values)
    return values


def some_floats() -> np.ndarray:
    """A million floats of every exponent, NaN and infinity among them, and all the edges."""
    bits = np.random.default_rng(5).integers(0, 2**32, 2**20, dtype=np.uint32)
    edges = np.array(EDGES, dtype=np.uint32)
    bits[: 2 * len(edges)] = np.concatenate([edges, edges | 0x80000000])
    return bits.view(np.float32).reshape(-1, 64)


@pytest.mark.parametrize("name", FLOATS)
def test_a_codec_stores_rows_and_reads_them_back(name: str) -> None:
    codec = DTYPES.load(name)
    assert codec.name == name
    assert codec.physical.byteorder in "=<|"
    values = np.random.default_rng(0).standard_normal((31, 6)).astype(np.float32)
    stored = encode(codec, values)
    decoded = decode(codec, stored)
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    np.testing.assert_allclose(decoded, values, rtol=2**-8)
    # What was decoded is stored as the same bytes again: nothing drifts.
    assert encode(codec, decoded).tobytes() == stored.tobytes()
    np.testing.assert_array_equal(decode(codec, stored[:0]), np.empty((0, 6), np.float32))


@pytest.mark.parametrize("name", FLOATS)
def test_nan_stays_nan_and_nothing_else_becomes_it(name: str) -> None:
    values = some_floats()
    codec = DTYPES.load(name)
    decoded = decode(codec, encode(codec, values))
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(values))
    known = ~np.isnan(values)
    np.testing.assert_array_equal(np.signbit(decoded)[known], np.signbit(values)[known])


@pytest.mark.parametrize("name", HALVES)
def test_halves_equal_torch(name: str) -> None:
    values = some_floats()
    codec = DTYPES.load(name)
    expected = torch.from_numpy(values).to(getattr(torch, name))
    known = ~np.isnan(values)
    stored = encode(codec, values).view(np.uint16)
    np.testing.assert_array_equal(
        stored[known], expected.view(torch.int16).numpy().view(np.uint16)[known]
    )
    np.testing.assert_array_equal(
        decode(codec, stored.view(codec.physical))[known], expected.float().numpy()[known]
    )


@pytest.mark.parametrize("name", HALVES)
def test_every_half_is_read_and_written_exactly(name: str) -> None:
    codec = DTYPES.load(name)
    stored = np.arange(2**16, dtype=np.uint16).reshape(-1, 64)
    values = decode(codec, stored.view(codec.physical))
    known = ~np.isnan(values)
    np.testing.assert_array_equal(encode(codec, values).view(np.uint16)[known], stored[known])


@pytest.mark.parametrize("name", HALVES)
@given(bits=st.integers(0, 2**31 - 1))
@example(bits=0x3F808000)
@example(bits=0x33000000)
@settings(max_examples=200, deadline=None)
def test_a_half_is_the_nearest_and_even_on_a_tie(name: str, bits: int) -> None:
    value = np.array([[bits]], dtype=np.uint32).view(np.float32)
    if not np.isfinite(value[0, 0]):
        return
    codec = DTYPES.load(name)
    stored = int(encode(codec, value).view(np.uint16)[0, 0])
    neighbours = np.array([max(stored - 1, 0), stored, stored + 1], dtype=np.uint16)
    around = decode(codec, neighbours.view(codec.physical).reshape(-1, 1))[:, 0]
    if not np.isfinite(around[1]):  # past the largest: at least half a step beyond it
        step = Fraction(float(around[0])) - Fraction(_before(codec, stored - 1))
        assert Fraction(float(value[0, 0])) >= Fraction(float(around[0])) + step / 2
        return
    exact = Fraction(float(value[0, 0]))
    error = [abs(Fraction(float(each)) - exact) for each in around if np.isfinite(each)]
    assert error[1] == min(error)
    tie = stored > 0 and error[1] == error[0] and error[1] > 0
    if tie or (len(error) > 2 and error[2] == error[1] > 0):
        assert stored % 2 == 0


def _before(codec: RowType, stored: int) -> float:
    before = np.array([[stored - 1]], dtype=np.uint16).view(codec.physical)
    return float(decode(codec, before)[0, 0])


def test_an_unknown_dtype_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'fp12'") as caught:
        DTYPES.load("fp12")
    assert "bfloat16" in caught.value.hint


def test_e4m3_to_bfloat16_is_decoding_and_rounding() -> None:
    """Every item under every scale; a NaN is one in both, whatever its sign."""
    from engram_cli.rows.codecs import fp8

    items = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    values = np.empty((256, 256), dtype=np.float32)
    DTYPES.load("fp8_e8m0").decode(items, scales, values)
    wanted, found = (np.empty((256, 256), dtype=np.uint16) for _ in range(2))
    DTYPES.load("bfloat16").encode(values, wanted, None)
    fp8.to_bfloat16(items, scales, found)
    nan = np.isnan(values)
    assert np.array_equal(found[~nan], wanted[~nan])
    assert nan.sum() == 510 + 256
    assert np.all((found[nan] & 0x7FFF) == 0x7FC0)

"""Codecs of integers: largest sizes of rows or blocks in, scales out.

A scale has so few bits that item times scale fits float32: decoding never rounds, and a block that
is read and written again finds the same scale.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels
from engram_cli.rows.codecs.base import Scaling
from engram_cli.rows.codecs.scaled import Bytes, Floats, ScaledCodec

BLOCK = 32
_LEAST_FLOAT32 = np.float32(2.0**-126)
_LEAST_FLOAT16 = np.float32(2.0**-24)
_LARGEST_FLOAT16 = np.float32(65504)
_COARSE = np.float32(2.0**-16)


def float32_scales(limit: int, tops: Floats) -> Floats:
    """Largest size / limit in 17 significant bits, 2**-126 or more; 0 where all items are 0."""
    bits = (tops / np.float32(limit)).view(np.int32)
    bits = (bits + 0x3F + (bits >> 7 & 1)) & ~0x7F
    return _or_zero(tops, np.maximum(bits.view(np.float32), _LEAST_FLOAT32))


def float16_scales(limit: int, tops: Floats) -> NDArray[np.float16]:
    """Largest size / limit as float16, below 2**-16 the next power of two; 0 where all items are 0.

    Below 2**-16 a float16 has so few bits that rounding would move the largest item.
    """
    exact = tops / np.float32(limit)
    nearest = np.minimum(exact, _LARGEST_FLOAT16).astype(np.float16).astype(np.float32)
    power = (exact.view(np.int32) + 0x7FFFFF & ~0x7FFFFF).view(np.float32)
    chosen = np.where(exact < _COARSE, np.maximum(power, _LEAST_FLOAT16), nearest)
    return _or_zero(tops, chosen).astype(np.float16)


def integer_codec(name: str, *, limit: int, blocks: bool) -> ScaledCodec:
    """Items -limit to limit, -limit - 1 for NaN; a float32 scale a row or a float16 one a block."""
    packed = limit < 8
    codes = np.arange(256)
    signed = ((codes & 15) ^ 8) - 8 if packed else (codes ^ 128) - 128
    meanings = np.where(signed < -limit, np.nan, signed).astype(np.float32)
    if blocks:
        scaling = Scaling(per="block", dtype=np.dtype("<f2"), block=BLOCK)
    else:
        scaling = Scaling(per="row", dtype=np.dtype("<f4"))

    def quantise(values: Floats, scales: Floats, dim: int, block: int, items: Bytes) -> None:
        kernels.to_integers(values, scales, dim, block, limit, items)

    return ScaledCodec(
        name=name,
        physical=np.dtype("u1" if packed else "i1"),
        scaling=scaling,
        choose=partial(float16_scales if blocks else float32_scales, limit),
        widen=_as_float32,
        quantise=quantise,
        meanings=meanings,
        packed=packed,
    )


def _as_float32(scales: NDArray[np.floating]) -> Floats:
    return scales.astype(np.float32)


def _or_zero(tops: Floats, scales: Floats) -> Floats:
    return np.where(np.rint(tops / scales) == 0, np.float32(0), scales)

"""Rows in blocks of bytes that carry their own scales: ggml's types, and e8m0 before e4m3.

They are read, and Q8_0 is written too. The layouts are those of ggml's ggml-common.h; decoding is
NumPy, a block a row of an array. The package `gguf` is what tests compare them with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.rows.dtypes import FP8_E8M0, Floats, Items, RowType

Bytes = NDArray[np.uint8]
_CODEC = "engram_cli.rows.codecs.blocks"


def encode(
    row_type: RowType, values: Floats, stored: NDArray[Any], scales: NDArray[Any] | None
) -> None:
    """Store `values` float32[n, dim] as Q8_0 in `stored` uint8[n, width]: ggml's numbers.

    Raises InputError for another dtype, which is read only.
    """
    if row_type.name == "q8_0":
        from engram_cli.rows.codecs import kernels

        blocks = stored.reshape(-1, 34)
        steps = np.empty(len(blocks), dtype=np.float32)
        halves = np.empty(len(blocks), dtype=np.uint16)
        kernels.to_q8_0(values.reshape(-1), steps, blocks)
        kernels.to_float16(steps, halves)
        blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
        return
    raise InputError(f"rows of {row_type.name} are read, not written", "choose another dtype")


def decode(
    row_type: RowType, stored: NDArray[Any], scales: NDArray[Any] | None, values: Floats
) -> None:
    """Write the values of `stored` uint8[n, width] to `values` float32[n, dim]."""
    assert row_type.items.block is not None
    count, size = row_type.items.block
    blocks = np.ascontiguousarray(stored).reshape(-1, size)
    whole = _DECODERS[row_type.name](blocks).reshape(len(stored), -1, count)
    values[:] = whole.reshape(len(stored), -1)[:, : values.shape[1]]


def widen(row_type: RowType, scales: NDArray[Any]) -> Floats:
    """Raise InputError: the scales are in the blocks."""
    raise InputError(f"rows of {row_type.name} have no scales", "take the rows alone")


def _half(blocks: Bytes, begin: int) -> Floats:
    """Return the float16 of each block at a byte as float32[n, 1]."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float32)


def _e8m0_e4m3(blocks: Bytes) -> Floats:
    values = FP8_E8M0.items.values
    assert values is not None
    exponents = blocks[:, :1]
    powers = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)
    powers[exponents == 255] = np.nan
    scaled: Floats = values[blocks[:, 1:]] * powers
    return scaled


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return _half(blocks, 0) * (halves.astype(np.float32) - 8)


def _q4_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 4:16].astype(np.uint8)
    low, high, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=1)
    least = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=1)
    quants = blocks[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & 15
    flat = quants.reshape(-1, 8, 32).astype(np.float32)
    step, bias = (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * least)[..., None]
    found: Floats = step * flat - bias
    return found.reshape(len(blocks), 256)


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    quants = low.reshape(-1, 2, 4, 32) | high << 4
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    steps = (_half(blocks, 208) * scales)[..., None]
    centred = quants.reshape(-1, 16, 16).astype(np.float32) - 32
    found: Floats = steps * centred
    return found.reshape(len(blocks), 256)


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "e8m0_e4m3": _e8m0_e4m3,
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_k": _q4_k,
    "q6_k": _q6_k,
}


def _row_type(name: str, values: int, size: int) -> RowType:
    items = Items(name=name, tensor="uint8", block=(values, size))
    return RowType(name=name, items=items, codec=_CODEC)


E8M0_E4M3 = _row_type("e8m0_e4m3", 32, 33)
Q8_0 = _row_type("q8_0", 32, 34)
Q4_0 = _row_type("q4_0", 32, 18)
Q4_K = _row_type("q4_k", 256, 144)
Q6_K = _row_type("q6_k", 256, 210)

"""Describes each dtype of stored rows once; tables, bundles, tiers and kernels read it from here.

A dtype is a kind of item (`Items`), how the items are scaled (`Scaling`), and the module that
encodes and decodes rows (`codec`). What the bytes mean is in docs/reference/table-format.md. This
module needs NumPy alone, because models load it; codecs, which need Numba, are imported when used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 32  # values of a row that share a scale, where a row has several
RECORD_ALIGNMENT = 8  # bytes; the widest aligned load. V4.1's 264 bytes need no padding
# Between these, neither a product with an item nor a quotient leaves the normal float32 numbers.
LEAST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**100
_PIECE_ITEMS = 2**22

# Tensor dtypes: the name that safetensors has for each, and the NumPy dtype that holds its items.
TENSOR_DTYPES = {
    "float32": ("F32", "<f4"),
    "float16": ("F16", "<f2"),
    "bfloat16": ("BF16", "<u2"),
    "float8_e4m3fn": ("F8_E4M3", "u1"),
    "float8_e8m0fnu": ("F8_E8M0", "u1"),
    "int64": ("I64", "<i8"),
    "int32": ("I32", "<i4"),
    "int8": ("I8", "i1"),
    "uint8": ("U8", "u1"),
    "uint32": ("U32", "<u4"),
}


def physical_dtype(tensor: str) -> np.dtype[Any]:
    """Return the NumPy dtype that holds a tensor dtype: uint16 for "bfloat16", uint8 for float8."""
    return np.dtype(TENSOR_DTYPES[tensor][1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """What one stored item is, before any scale.

    `tensor`: the dtype of a safetensors tensor of items. `values` float32[256]: the value of every
    byte, or of every half of a byte where items are `packed` two a byte, the lower half first; NaN
    for the items that stand for NaN and infinity. None for floats, which are their own values and
    become infinite past the largest. `sign`: the bits of an item, as an unsigned integer, that
    make no difference to a zero.

    `block`: (values, bytes) of rows that are stored in blocks of bytes with scales inside.

    `name` chooses the fast paths: the kernel that measures norms (`table.scan`) and the plain torch
    decoder. Items that these do not know are decoded by `values`.
    """

    name: str
    tensor: str
    values: Floats | None = None
    packed: bool = False
    sign: int = 0
    block: tuple[int, int] | None = None

    @property
    def physical(self) -> np.dtype[Any]:
        """The NumPy dtype of a stored item, little-endian; of a pair where items are packed."""
        return physical_dtype(self.tensor)

    @property
    def largest(self) -> float:
        """The largest absolute value of an item: what lies past it at scale 1 is stored as it."""
        assert self.values is not None
        return float(np.nanmax(self.values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaling:
    """The scales of a layer's rows: one for the layer, for each row, or for a block of a row.

    `tensor`: the dtype of a safetensors tensor of scales. `block`: values that share a scale; the
    last block of a row may be shorter.
    """

    per: Literal["layer", "row", "block"]
    tensor: str
    block: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of a stored scale, little-endian."""
        return physical_dtype(self.tensor)

    def width(self, dim: int) -> int:
        """Return how many scales a row of `dim` values has; the one of a layer counts as one."""
        return -(-dim // self.block) if self.per == "block" else 1

    def shape(self, rows: int, dim: int) -> tuple[int, ...]:
        """Return the shape of the scales of `rows` rows."""
        return (1,) if self.per == "layer" else (rows, self.width(dim))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLayout:
    """The bytes of a record: a row, then its own scales from `scale_begin`, then padding.

    Rows are copied between tiers as records, so that one read brings all that a row needs.
    `scale_bytes` is 0 where rows have no scales of their own.
    """

    row_bytes: int
    scale_begin: int
    scale_bytes: int
    record_bytes: int

    def part(self, records: Any, part: str) -> Any:
        """Return the "rows" or "scales" of `records` uint8[n, record_bytes] as a view [n, size]."""
        if part == "rows":
            return records[:, : self.row_bytes]
        return records[:, self.scale_begin : self.scale_begin + self.scale_bytes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowType:
    """How float32 rows are stored as one dtype.

    `codec`: the module with `encode`, `decode` and `widen`, imported on first use. `kernel`: the
    branch of the Triton kernels that decodes such rows (KIND in `runtime.kernels.lookup`), None
    where plain torch operations do it. `suggested`: whether `engram plan` offers it as an
    alternative.
    """

    name: str
    items: Items
    codec: str
    scaling: Scaling | None = None
    kernel: str | None = None
    suggested: bool = False

    @property
    def quantised(self) -> bool:
        """Whether items need scales. Rows that are not quantised can be trained."""
        return self.scaling is not None

    @property
    def of_layer(self) -> bool:
        """Whether one scale serves all rows of a layer."""
        return self.scaling is not None and self.scaling.per == "layer"

    @property
    def physical(self) -> np.dtype[Any]:
        """The NumPy dtype of a stored item, little-endian."""
        return self.items.physical

    @property
    def stored_as(self) -> str:
        """How a value is stored, in words."""
        item = {
            "float32": "the value",
            "float16": "the value",
            "bfloat16": "the upper 16 bits of the value as float32",
        }.get(self.items.tensor, f"the value as {self.items.name}")
        if self.items.packed:
            item = f"two values as {self.items.name} in a byte, the first in the lower half"
        if self.scaling is None:
            return item
        share = {"layer": "all rows", "row": "its row", "block": f"{self.scaling.block} values"}
        return f"{item}, divided by the scale of {share[self.scaling.per]}"

    def width(self, dim: int) -> int:
        """Return how many stored items a row of `dim` values takes, packed ones counted by pair."""
        if self.items.block is not None:
            values, size = self.items.block
            return -(-dim // values) * size
        return -(-dim // 2) if self.items.packed else dim

    def row_bytes(self, dim: int) -> int:
        """Return the bytes of a row of `dim` values and its scales, without the one of a layer."""
        layout = self.record_layout(dim)
        return layout.row_bytes + layout.scale_bytes

    def record_layout(self, dim: int) -> RecordLayout:
        """Return where the parts of a record lie; scales are aligned to their own size."""
        row_bytes = self.width(dim) * self.physical.itemsize
        begin, scale_bytes = row_bytes, 0
        if self.scaling is not None and not self.of_layer:
            size = self.scaling.dtype.itemsize
            begin = _padded(row_bytes, size)
            scale_bytes = self.scaling.width(dim) * size
        return RecordLayout(
            row_bytes=row_bytes,
            scale_begin=begin,
            scale_bytes=scale_bytes,
            record_bytes=_padded(begin + scale_bytes, RECORD_ALIGNMENT),
        )

    def any_nonzero(self, stored: NDArray[Any]) -> bool:
        """Return whether an item of `stored` [n, width] is not zero; minus zero is zero."""
        sign = self.items.sign
        step = max(1, _PIECE_ITEMS // stored.shape[1])
        for begin in range(0, len(stored), step):
            part = stored[begin : begin + step]
            if np.any(part & ~np.asarray(sign, part.dtype) if sign else part):
                return True
        return False

    def layer_scale(self, largest: float) -> float:
        """Return the one scale of a layer: `largest` becomes the largest item; 1 if all is zero."""
        scale = largest / self.items.largest if largest > 0 else 1.0
        return float(np.float32(min(max(scale, LEAST_SCALE), LARGEST_SCALE)))

    def encode(
        self, values: Floats, stored: NDArray[Any], scales: NDArray[Any] | None = None
    ) -> None:
        """Store `values` float32[n, dim] in `stored` [n, width] and, but for a layer's, `scales`.

        `scales` are [n, scaling.width(dim)], or [1] where one serves the layer, which is read; None
        without scaling. All contiguous. Holds no state and may run in threads.
        """
        import_module(self.codec).encode(self, values, stored, scales)

    def decode(self, stored: NDArray[Any], scales: NDArray[Any] | None, values: Floats) -> None:
        """Write the values of `stored` [n, width] to `values` float32[n, dim]; see `encode`."""
        import_module(self.codec).decode(self, stored, scales, values)

    def widen(self, scales: NDArray[Any]) -> Floats:
        """Return stored scales as float32, in the same shape."""
        widened: Floats = import_module(self.codec).widen(self, scales)
        return widened


def _padded(size: int, step: int) -> int:
    return -(-size // step) * step


def _e4m3_values() -> Floats:
    """Return the values of float8 e4m3fn: 4 bits of exponent, 3 of mantissa, no infinity."""
    items = np.arange(256)
    exponent, mantissa = items >> 3 & 15, items & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10.0)
    sizes = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    sizes[items & 127 == 127] = np.nan
    return np.where(items < 128, sizes, -sizes).astype(np.float32)


def _integer_values(limit: int) -> Floats:
    """Return the values of integers -limit to limit of a byte or half a byte; below is NaN."""
    codes = np.arange(256)
    signed = ((codes & 15) ^ 8) - 8 if limit < 8 else (codes ^ 128) - 128
    return np.where(signed < -limit, np.nan, signed).astype(np.float32)


# NaN items: 0x7F and 0xFF of e4m3, -128 of int8, -8 of int4. bfloat16 is held as its bits.
_FLOAT32 = Items(name="float32", tensor="float32")
_FLOAT16 = Items(name="float16", tensor="float16")
_BFLOAT16 = Items(name="bfloat16", tensor="bfloat16", sign=0x8000)
_E4M3 = Items(name="e4m3", tensor="float8_e4m3fn", values=_e4m3_values(), sign=0x80)
_INT8 = Items(name="int8", tensor="int8", values=_integer_values(127))
_INT4 = Items(name="int4", tensor="uint8", values=_integer_values(7), packed=True)

_LAYER = Scaling(per="layer", tensor="float32")
_ROW = Scaling(per="row", tensor="float32")
_E8M0 = Scaling(per="block", tensor="float8_e8m0fnu", block=BLOCK)
_BLOCK = Scaling(per="block", tensor="float16", block=BLOCK)

_FLOATS = "engram_cli.rows.codecs.floats"
_FP8 = "engram_cli.rows.codecs.fp8"
_INTEGERS = "engram_cli.rows.codecs.integers"

FLOAT32 = RowType(name="float32", items=_FLOAT32, codec=_FLOATS, kernel="plain")
FLOAT16 = RowType(name="float16", items=_FLOAT16, codec=_FLOATS, kernel="plain")
BFLOAT16 = RowType(name="bfloat16", items=_BFLOAT16, codec=_FLOATS, kernel="plain", suggested=True)
# DeepSeek-V4.1: a power of two for each 32 values.
FP8_E8M0 = RowType(
    name="fp8_e8m0", items=_E4M3, scaling=_E8M0, codec=_FP8, kernel="grouped", suggested=True
)
# Qwen's n-gram tables: one scale a layer.
FP8 = RowType(name="fp8", items=_E4M3, scaling=_LAYER, codec=_FP8, kernel="scaled")
INT8 = RowType(
    name="int8", items=_INT8, scaling=_ROW, codec=_INTEGERS, kernel="per-row", suggested=True
)
INT8_B32 = RowType(name="int8_b32", items=_INT8, scaling=_BLOCK, codec=_INTEGERS)
INT4 = RowType(name="int4", items=_INT4, scaling=_ROW, codec=_INTEGERS)
INT4_B32 = RowType(name="int4_b32", items=_INT4, scaling=_BLOCK, codec=_INTEGERS, suggested=True)

"""A layer's rows as they are stored, and the plain twin that turns them into numbers.

In: stored items, scales, row numbers. Out: vectors, computed in float32 and rounded once; as
float32 they equal what `rows.codecs` decodes, to the bit, NaNs aside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram_cli.errors import InputError

GROUP = 32  # values of a row that share a scale, where a row has several
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = (torch.uint8, torch.float8_e4m3fn)
_E8M0 = (torch.uint8, getattr(torch, "float8_e8m0fnu", torch.uint8))
GRADIENTS = ("dense", "sparse", "atomic")
KERNEL_KINDS = ("plain", "grouped", "scaled", "per-row")
_MEND = (
    "give floats; e4m3 with e8m0 scales by 32 or one float32; int8, or two 4-bit integers a byte "
    "and `dim`, with a float32 a row or float16 by 32"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A layer's rows `values` [rows, dim]: floats; or e4m3 (float8 or uint8); or int8; or, where
    `dim` is given, two 4-bit integers a byte, uint8 [rows, ceil(dim / 2)], the lower half first.

    `scales`: for e4m3 uint8 [rows, ceil(dim / 32)] of e8m0, or one float32; for integers float32
    [rows] or float16 [rows, ceil(dim / 32)]. Rows may lie apart (a stride), values of a row may
    not. `gradients` of floats: dense; sparse; or dense and added up by a GPU in whatever order,
    which is not the same to the bit every time. Raises InputError for anything else.
    """

    values: Tensor
    scales: Tensor | None = None
    dim: int | None = None
    gradients: str = "dense"

    def __post_init__(self) -> None:
        kind, scales = self.kind, self.scales
        several = scales is not None and scales.ndim == 2 and kind != "scaled"
        apart = several and scales is not None and scales.stride(1) != 1
        if self.values.stride(1) != 1 or apart:
            raise InputError("the values of a table's row are not next to each other", "copy it")
        if scales is not None and scales.device != self.values.device:
            raise InputError(
                f"scales on {scales.device}, rows on {self.values.device}", "move one of them"
            )
        if self.gradients not in GRADIENTS:
            raise InputError(f"gradients {self.gradients!r}", f"one of {', '.join(GRADIENTS)}")

    @property
    def width(self) -> int:
        """How many values a row has."""
        return self.values.shape[1] if self.dim is None else self.dim

    @property
    def kind(self) -> str:
        """How a row becomes numbers: one of `KERNEL_KINDS`, or what only the twin decodes.

        These are `ragged` (e8m0 whose last block is short), `blocks` (int8 under float16), `halves`
        and `halves, blocks` (4-bit integers under a float32 a row or float16).
        """
        values, scales = self.values, self.scales
        if values.ndim == 2 and scales is None and self.dim is None and values.dtype in FLOATS:
            return "plain"
        if values.ndim == 2 and scales is not None:
            kind = self._halves(scales) if self.dim is not None else self._bytes(scales)
            if kind is not None:
                return kind
        about = "none" if scales is None else f"{scales.dtype} {tuple(scales.shape)}"
        raise InputError(
            f"no table has rows {values.dtype} {tuple(values.shape)} with scales {about}", _MEND
        )

    def _bytes(self, scales: Tensor) -> str | None:
        """The kind of rows with an item a byte."""
        rows, dim = self.values.shape
        by_block = scales.shape == (rows, -(-dim // GROUP))
        if self.values.dtype in FP8:
            if scales.dtype == torch.float32 and scales.numel() == 1:
                return "scaled"
            if scales.dtype in _E8M0 and by_block:
                return "ragged" if dim % GROUP else "grouped"
        if self.values.dtype == torch.int8:
            if scales.dtype == torch.float32 and scales.shape == (rows,):
                return "per-row"
            if scales.dtype == torch.float16 and by_block:
                return "blocks"
        return None

    def _halves(self, scales: Tensor) -> str | None:
        """The kind of rows with two items a byte."""
        rows, dim = len(self.values), self.width
        if self.values.dtype != torch.uint8 or self.values.shape[1] != -(-dim // 2):
            return None
        if scales.dtype == torch.float32 and scales.shape == (rows,):
            return "halves"
        blocks = scales.dtype == torch.float16 and scales.shape == (rows, -(-dim // GROUP))
        return "halves, blocks" if blocks else None

    @property
    def has_kernel(self) -> bool:
        """Whether the kernels decode such rows; if not, the twin does."""
        return self.kind in KERNEL_KINDS

    def is_like(self, other: Table) -> bool:
        """Whether one launch can serve both: equal in kind, dtype, width, gradients, strides."""
        mine = (self.kind, self.values.dtype, self.width, self.gradients, self.strides)
        own = (other.kind, other.values.dtype, other.width, other.gradients, other.strides)
        return mine == own

    @property
    def strides(self) -> tuple[int, ...]:
        """How far apart rows and their scales lie, in elements."""
        apart = (self.values.stride(0),)
        return apart if self.scales is None else (*apart, *self.scales.stride()[:1])

    @property
    def default_dtype(self) -> torch.dtype:
        """What vectors come as when nothing is asked: the rows' dtype, bfloat16 if quantised."""
        return self.values.dtype if self.kind == "plain" else torch.bfloat16


def dequantise(table: Table, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., dim] in `dtype` of rows int64[...]: computed in float32, rounded once."""
    if table.scales is None:
        sparse = table.gradients == "sparse"
        return F.embedding(rows, table.values, sparse=sparse).to(dtype)
    numbers = _numbers(table, table.values[rows])
    if table.kind == "scaled":
        return (numbers * table.scales.reshape(())).to(dtype)
    factors = table.scales[rows]
    if factors.dtype in _E8M0:
        factors = _e8m0(factors.view(torch.uint8))
    if factors.ndim < numbers.ndim:  # one a row
        factors = factors[..., None]
    else:
        factors = factors.float().repeat_interleave(GROUP, dim=-1)[..., : table.width]
    return (numbers * factors).to(dtype)


def _numbers(table: Table, stored: Tensor) -> Tensor:
    """float32 [..., dim] of stored items [..., width] at scale 1."""
    if table.dim is not None:
        halves = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2)[..., : table.dim]
        signed = (halves.to(torch.int8) ^ 8) - 8
        return signed.float().masked_fill(signed == -8, torch.nan)
    if stored.dtype == torch.int8:
        return stored.float().masked_fill(stored == -128, torch.nan)
    return stored.view(torch.float8_e4m3fn).float()


def _e8m0(raw: Tensor) -> Tensor:
    """float32 of e8m0 bytes: 2**(byte - 127), NaN for 255."""
    byte = raw.int()
    bits = torch.where(byte == 0, 0x00400000, byte << 23)
    return torch.where(byte == 255, 0x7FC00000, bits).view(torch.float32)

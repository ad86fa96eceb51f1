"""A layer's rows as they are stored, and the plain torch function that turns them into vectors.

Vectors are computed in float32 and rounded once. As float32 they equal what `RowType.decode` gives,
to the bit, NaNs aside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import BFLOAT16, FLOAT16, FLOAT32, TENSOR_DTYPES, RowType

_PLAIN = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
FLOATS = tuple(_PLAIN)
GRADIENTS = ("dense", "sparse", "atomic")
DECODED = "decoded"  # the kind of rows that no kernel decodes
_ACCEPTED = (
    "give floats; e4m3 with e8m0 scales by 32 or one float32; int8, or two 4-bit integers a byte "
    "and `dim`, with a float32 a row or float16 by 32; or name another `row_type`"
)


# The torch dtypes of a stored tensor dtype, first the one that it is held as: float8 is held as
# bytes, because not every torch has all float8 dtypes.
HELD_DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    name: (
        (torch.uint8, getattr(torch, name, torch.uint8))
        if name.startswith("float8")
        else (getattr(torch, name),)
    )
    for name in TENSOR_DTYPES
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A layer's rows `values` [rows, width of a stored row], stored as `row_type`.

    Without a `row_type`, it is the dtype of engram that the tensors fit. `scales`: none, one,
    [rows] or [rows, blocks], as the dtype has them. `dim`: the values of a row, where two of them
    share a byte. float8 may be uint8. Rows may lie apart (a stride), values of a row may not.
    `gradients` of floats: dense; sparse; or dense and added up by a GPU in any order, which is not
    the same to the bit every time. Raises InputError for tensors that the dtype does not have.
    """

    values: Tensor
    scales: Tensor | None = None
    dim: int | None = None
    gradients: str = "dense"
    row_type: RowType = None  # type: ignore[assignment]  # set in __post_init__

    def __post_init__(self) -> None:
        values, scales = self.values, self.scales
        if self.row_type is None:
            object.__setattr__(self, "row_type", self._recognised())
        elif not self._fits(self.row_type):
            raise self._unknown(self.row_type.name)
        apart = values.stride(1) != 1
        if scales is not None:
            apart = apart or (self.per == "block" and scales.stride(1) != 1)
            if scales.device != values.device:
                raise InputError(f"scales on {scales.device}, rows on {values.device}", "move one")
        if apart:
            raise InputError("the values of a table's row are not next to each other", "copy it")
        if self.gradients not in GRADIENTS:
            raise InputError(f"gradients {self.gradients!r}", f"one of {', '.join(GRADIENTS)}")

    @property
    def width(self) -> int:
        """How many values a row has."""
        return self.values.shape[1] if self.dim is None else self.dim

    @property
    def per(self) -> str | None:
        """What has a scale of its own: the layer, each row, each block of a row, or nothing."""
        scaling = self.row_type.scaling
        return None if scaling is None else scaling.per

    @property
    def kind(self) -> str:
        """The branch of the kernels that decodes such rows, or DECODED."""
        kernel, scaling = self.row_type.kernel, self.row_type.scaling
        if kernel is None or (scaling is not None and scaling.block and self.width % scaling.block):
            return DECODED
        return kernel

    @property
    def has_kernel(self) -> bool:
        """Whether the kernels decode such rows; else plain torch operations do."""
        return self.kind != DECODED

    def is_like(self, other: Table) -> bool:
        """Return whether one launch can serve both: equal in dtype, width, gradients, strides."""
        return self.row_type is other.row_type and (
            (self.values.dtype, self.width, self.gradients, self.strides)
            == (other.values.dtype, other.width, other.gradients, other.strides)
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """How far apart rows and their scales lie, in elements."""
        apart = (self.values.stride(0),)
        return apart if self.scales is None else (*apart, *self.scales.stride()[:1])

    @property
    def default_dtype(self) -> torch.dtype:
        """What vectors come as when nothing is asked: the rows' dtype, bfloat16 if quantised."""
        return torch.bfloat16 if self.row_type.quantised else self.values.dtype

    def _recognised(self) -> RowType:
        """Return the dtype that the tensors fit. Raises InputError."""
        if self.scales is None and self.dim is None and self.values.ndim == 2:
            plain = _PLAIN.get(self.values.dtype)
            if plain is not None:  # the common case, at each call of a model
                return plain
        for row_type in map(DTYPES.load, DTYPES):
            if self._fits(row_type):
                return row_type
        raise self._unknown("dtype")

    def _fits(self, row_type: RowType) -> bool:
        """Return whether the tensors are those of a dtype."""
        values, scales, items = self.values, self.scales, row_type.items
        if values.ndim != 2 or values.dtype not in HELD_DTYPES[items.tensor]:
            return False
        if (items.packed, values.shape[1]) != (self.dim is not None, row_type.width(self.width)):
            return False
        scaling = row_type.scaling
        if scaling is None or scales is None:
            return scaling is None and scales is None
        if scales.dtype not in HELD_DTYPES[scaling.tensor]:
            return False
        if scaling.per == "layer":
            return scales.numel() == 1
        blocks = () if scaling.per == "row" else (scaling.width(self.width),)
        return scales.shape == (len(values), *blocks)

    def _unknown(self, what: str) -> InputError:
        values, scales = self.values, self.scales
        about = "none" if scales is None else f"{scales.dtype} {tuple(scales.shape)}"
        return InputError(
            f"no {what} has rows {values.dtype} {tuple(values.shape)} with scales {about}",
            _ACCEPTED,
        )


def dequantise(table: Table, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [..., dim] in `dtype` of rows int64[...]: computed in float32, rounded once."""
    if table.scales is None:
        sparse = table.gradients == "sparse"
        return F.embedding(rows, table.values, sparse=sparse).to(dtype)
    numbers = _numbers(table, table.values[rows])
    if table.per == "layer":
        return (numbers * _factors(table, table.scales).reshape(())).to(dtype)
    factors = _factors(table, table.scales[rows])
    scaling = table.row_type.scaling
    if scaling is not None and scaling.per == "block":
        factors = factors.repeat_interleave(scaling.block, dim=-1)[..., : table.width]
    else:
        factors = factors[..., None]
    return (numbers * factors).to(dtype)


def _numbers(table: Table, stored: Tensor) -> Tensor:
    """Return float32 [..., dim] of stored items [..., width] at scale 1."""
    items = table.row_type.items
    if items.packed:
        stored = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2)[..., : table.width]
    if items.name == "int4":
        signed = (stored.to(torch.int8) ^ 8) - 8
        return signed.float().masked_fill(signed == -8, torch.nan)
    if items.name == "int8":
        return stored.float().masked_fill(stored == -128, torch.nan)
    if items.name == "e4m3":
        return stored.view(torch.float8_e4m3fn).float()
    values = torch.from_numpy(items.values).to(stored.device)
    return values[stored.view(torch.uint8).int()]


def _factors(table: Table, stored: Tensor) -> Tensor:
    """Return stored scales as float32."""
    scaling = table.row_type.scaling
    if scaling is not None and scaling.tensor == "float8_e8m0fnu":
        return _e8m0(stored.view(torch.uint8))
    return stored.float()


def _e8m0(raw: Tensor) -> Tensor:
    """Return float32 of e8m0 bytes: 2**(byte - 127), NaN for 255."""
    byte = raw.int()
    bits = torch.where(byte == 0, 0x00400000, byte << 23)
    return torch.where(byte == 255, 0x7FC00000, bits).view(torch.float32)

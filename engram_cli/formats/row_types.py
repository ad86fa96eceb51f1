"""How rows are stored: for each logical dtype of a table the tensors that hold a layer.

In shapes and dtypes the twin of `rows.codecs`, which the runtime cannot import; what the items and
scales mean is in docs/reference/table-format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # values of a row that share a scale, where a row has several
_PIECE_ITEMS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class RowType:
    """Stored items of the tensor dtype `items`, `packed` two a byte, under `scales` of another.

    `per`: what has a scale of its own, the layer, each row, or each block of a row. `sign`: the
    bits of an item, as an unsigned integer, that make no difference to a zero.
    """

    items: str
    packed: bool = False
    scales: str | None = None
    per: Literal["layer", "row", "block"] = "row"
    sign: int = 0

    def width(self, dim: int) -> int:
        """How many stored items a row of `dim` values takes."""
        return -(-dim // 2) if self.packed else dim

    def scale_shape(self, rows: int, dim: int) -> tuple[int, ...]:
        """The shape of the scales of `rows` rows."""
        if self.per == "layer":
            return (1,)
        return (rows, -(-dim // BLOCK) if self.per == "block" else 1)

    def any_nonzero(self, stored: NDArray[Any]) -> bool:
        """Whether an item of `stored` [n, width] differs from zero, minus zero being zero."""
        step = max(1, _PIECE_ITEMS // stored.shape[1])
        for begin in range(0, len(stored), step):
            part = stored[begin : begin + step]
            if np.any(part & ~np.asarray(self.sign, part.dtype) if self.sign else part):
                return True
        return False


ROW_TYPES: dict[str, RowType] = {
    "float32": RowType(items="float32"),
    "float16": RowType(items="float16"),
    "bfloat16": RowType(items="bfloat16", sign=0x8000),
    "fp8_e8m0": RowType(items="float8_e4m3fn", scales="float8_e8m0fnu", per="block", sign=0x80),
    "fp8": RowType(items="float8_e4m3fn", scales="float32", per="layer", sign=0x80),
    "int8": RowType(items="int8", scales="float32"),
    "int8_b32": RowType(items="int8", scales="float16", per="block"),
    "int4": RowType(items="uint8", packed=True, scales="float32"),
    "int4_b32": RowType(items="uint8", packed=True, scales="float16", per="block"),
}
ROW_DTYPES = tuple(ROW_TYPES)
FLOAT_DTYPES = tuple(name for name, kind in ROW_TYPES.items() if kind.scales is None)

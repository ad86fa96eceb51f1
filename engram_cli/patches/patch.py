"""What a patch is: row numbers of some layers, and the rows that replace them, as stored.

Rows are kept in the bytes that the base stores, so that applying and undoing lose nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError, MismatchError
from engram_cli.files import canonical_json
from engram_cli.hashing.layout import short
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.rows.source import StoredSource

MAX_DIM = 2**20
_PIECE_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPatch:
    """Rows of a layer as stored: `ids` int64[n], ascending and unique, and `rows` [n, width].

    `scales`: [n, scales a row] as stored; float32[1], the scale of the layer that the rows were
    encoded with, for a dtype with one; None for a dtype without scales.
    """

    ids: NDArray[np.int64]
    rows: NDArray[Any]
    scales: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_scales(self) -> NDArray[Any] | None:
        """The scales that belong to the rows: None for the one of the layer."""
        return None if self.scales is None or self.scales.ndim == 1 else self.scales

    def parts(self) -> list[NDArray[Any]]:
        """Return what a row consists of: [rows], or [rows, scales] under scales of its own."""
        return [self.rows] if self.row_scales is None else [self.rows, self.row_scales]


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """Rows of a table of one layout, and what they replace; `layers` by the layout's layer id.

    `base`: the digest of the artifact that it was made for (`RowSource.digest`, or of sampled
    rows), `base_format` its format; `replaced`: the digest of the rows of the base that it
    replaces (`replaced_digest`). Each may be None, as in files of other programs.
    `facts`: texts by name, for people. `stated`: the digest that the file of the patch states of
    itself, which was found to be `digest`; None for files without one, and for patches of no file.
    """

    fingerprint: str
    dtype: str
    dim: int
    layers: Mapping[int, LayerPatch]
    base: str | None = None
    base_format: str | None = None
    replaced: str | None = None
    description: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    stated: str | None = None

    @property
    def row_type(self) -> RowType:
        """How rows are stored."""
        return DTYPES.load(self.dtype)

    @property
    def rows(self) -> int:
        """The number of rows, of all layers."""
        return sum(map(len, self.layers.values()))

    @property
    def nbytes(self) -> int:
        """The bytes of row numbers, rows and scales."""
        return sum(
            own.ids.nbytes + sum(part.nbytes for part in own.parts())
            for own in self.layers.values()
        )

    @cached_property
    def digest(self) -> str:
        """The digest of what the patch does: layout, dtype, row numbers and rows."""
        about = {"fingerprint": self.fingerprint, "dtype": self.dtype, "dim": self.dim}
        digest = hashlib.sha256(b"engram patch 1\n" + canonical_json(about))
        for layer in sorted(self.layers):
            own = self.layers[layer]
            digest.update(canonical_json([layer, len(own)]))
            for part in (own.ids, own.rows, *([] if own.scales is None else [own.scales])):
                for first in range(0, len(part), step := _step(part)):
                    digest.update(np.ascontiguousarray(part[first : first + step]).data)
        return f"sha256:{digest.hexdigest()}"

    def require_sound(self, *, finite: bool = True) -> None:
        """Raise InputError unless shapes, dtypes, order of the rows and values are as they must be.

        With `finite`, other values are refused: one of them spoils every output that reads it.
        """
        if not 1 <= self.dim <= MAX_DIM or self.dtype not in DTYPES:
            raise InputError(f"a patch of {self.dim} x {self.dtype}", "name the base's dtype")
        for layer, own in self.layers.items():
            problem = self._problem(own, finite)
            if problem is not None:
                raise InputError(f"layer {layer} of the patch: {problem}", "make the patch again")

    def _problem(self, own: LayerPatch, finite: bool) -> str | None:
        row_type, count = self.row_type, len(own.ids)
        scaling = row_type.scaling
        if own.ids.dtype != np.int64 or own.ids.ndim != 1 or not count:
            return f"row numbers are {own.ids.dtype} {own.ids.shape}, not int64 [n]"
        if (own.rows.dtype, own.rows.shape) != (
            row_type.physical,
            (count, row_type.width(self.dim)),
        ):
            return f"rows are {own.rows.dtype} {own.rows.shape}"
        if scaling is None:
            if own.scales is not None:
                return f"rows of {self.dtype} have no scales"
        elif own.scales is None or (own.scales.dtype, own.scales.shape) != (
            scaling.dtype,
            scaling.shape(count, self.dim),
        ):
            return f"scales are not {scaling.dtype} {scaling.shape(count, self.dim)}"
        last = -1
        for first in range(0, count, step := _step(own.rows)):
            ids = own.ids[first : first + step]
            if int(ids[0]) <= last or (np.diff(ids) <= 0).any():
                return "row numbers are below 0, not ascending, or named twice"
            last = int(ids[-1])
            if not finite:
                continue
            piece = slice(first, first + step)
            scales = own.scales if own.row_scales is None else own.row_scales[piece]
            bad = not_finite(row_type, own.rows[piece], scales)
            if bad.any():
                return f"row {ids[int(bad.argmax())]:,} has a value that is not finite"
        return None

    def require_fits(self, base: StoredSource) -> None:
        """Raise MismatchError unless the rows are rows of `base`: layout, dtype, dim, layer scale.

        Whether it is the base that the patch was made for is not looked at.
        """
        where = f"a patch for {base.path}"
        if self.fingerprint != base.layout.fingerprint:
            raise MismatchError(
                f"the patch is of layout {short(self.fingerprint)}, {base.path} has "
                f"{short(base.layout.fingerprint)}",
                "a row stands for other n-grams there: make a patch for this layout",
            )
        if (self.dtype, self.dim) != (base.dtype, base.dim):
            raise MismatchError(
                f"the patch has rows of {self.dim} x {self.dtype}, {base.path} of "
                f"{base.dim} x {base.dtype}",
                f"make {where} (engram convert changes the dtype of a table)",
            )
        for layer, own in self.layers.items():
            if layer not in base.layers:
                raise MismatchError(
                    f"the patch has rows of layer {layer}, which {base.path} has not",
                    f"its layers are {', '.join(map(str, base.layers))}",
                )
            rows = base.layout.layer(layer).rows
            if int(own.ids[-1]) >= rows:
                raise MismatchError(
                    f"the patch has row {int(own.ids[-1]):,} of layer {layer}, which has "
                    f"{rows:,} rows",
                    f"make {where}",
                )
            if own.scales is not None and own.row_scales is None:
                scale = base.stored(layer, own.ids[:1])[1]
                if scale is not None and scale.tobytes() != own.scales.tobytes():
                    raise MismatchError(
                        f"the rows of the patch have the scale {own.scales[0]:g} of layer {layer}, "
                        f"those of {base.path} {scale[0]:g}",
                        f"make {where}",
                    )


def not_finite(
    row_type: RowType, rows: NDArray[Any], scales: NDArray[Any] | None
) -> NDArray[np.bool_]:
    """Return which of `rows` [n, width] as stored have a value that is not finite: bool[n].

    In NumPy alone, since models load patches. Blocks with scales inside are decoded.
    """
    items = row_type.items
    if items.block is not None:
        values = np.empty((len(rows), rows.shape[1] // items.block[1] * items.block[0]), np.float32)
        row_type.decode(np.ascontiguousarray(rows), scales, values)
        return np.asarray(~np.isfinite(values).all(axis=1))
    if items.tensor == "bfloat16":
        bad = (rows & 0x7F80 == 0x7F80).any(axis=1)
    elif items.values is None:
        bad = ~np.isfinite(rows).all(axis=1)
    else:
        codes = rows.view(np.uint8)
        odd = np.isnan(items.values)
        if items.packed:
            bad = (odd[codes & 15] | odd[codes >> 4]).any(axis=1)
        else:
            bad = odd[codes].any(axis=1)
    if scales is None or row_type.scaling is None:
        return np.asarray(bad)
    is_e8m0 = row_type.scaling.tensor == "float8_e8m0fnu"
    wrong = scales == 255 if is_e8m0 else ~np.isfinite(scales)
    return np.asarray(bad | (wrong.any() if scales.ndim == 1 else wrong.any(axis=1)))


def _step(part: NDArray[Any]) -> int:
    """Return how many rows of a part are looked at together."""
    return max(1, _PIECE_BYTES // max(1, part[:1].nbytes))

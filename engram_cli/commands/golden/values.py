"""The faults that dequantising can have, tried on somebody's values of stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.golden.file import TheirRow
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import Floats, RowType
from engram_cli.rows.source import RowSource

DEQUANTISE = "dequantisation"
Read = Callable[["StoredRow"], Floats]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredRow:
    """A row as it is stored, and its right values float32[dim].

    `items`, `factors` float32[dim]: the value of each item and its scale, None where rows have no
    scales of their own array.
    """

    row_type: RowType
    stored: NDArray[Any]
    values: Floats
    items: Floats | None = None
    factors: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedValues:
    """Values compared and equal, and the faults ("if ...") under which all are equal."""

    compared: int
    equal: int
    exact: tuple[str, ...] = ()


def explain_values(source: RowSource, theirs: Sequence[TheirRow]) -> ExplainedValues:
    """Compare values with those of a source that has vectors. Raises what reading rows raises."""
    rows = [stored_row(source, each.layer, each.row) for each in theirs]
    pairs = list(zip(rows, theirs, strict=True))
    compared = sum(len(each.values) for each in rows)
    equal = sum(int(_same(own.values, their.values).sum()) for own, their in pairs)
    if equal == compared:
        return ExplainedValues(compared=compared, equal=equal)
    with np.errstate(all="ignore"):  # a wrong reading may well overflow
        exact = [
            text
            for text, read in _faults(rows[0])
            if all(_same(read(own), their.values).all() for own, their in pairs)
        ]
    return ExplainedValues(compared=compared, equal=equal, exact=tuple(exact))


def stored_row(source: RowSource, layer: int, row: int) -> StoredRow:
    """Read a row of a source that has vectors."""
    assert source.dtype is not None
    assert source.dim is not None
    row_type = DTYPES.load(source.dtype)
    stored, scales = source.stored(layer, [row])
    values = source.vectors(layer, [row])[0]
    if scales is None or row_type.scaling is None or row_type.items.values is None:
        return StoredRow(row_type=row_type, stored=stored[0], values=values)
    codes = stored[0].view(np.uint8)
    if row_type.items.packed:
        codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
    block = row_type.scaling.block or source.dim
    factors = np.repeat(row_type.widen(np.ascontiguousarray(scales)).reshape(-1), block)
    return StoredRow(
        row_type=row_type,
        stored=stored[0],
        values=values,
        items=row_type.items.values[codes[: source.dim]],
        factors=factors[: source.dim],
    )


def to_bfloat16(values: Floats) -> Floats:
    """Return float32 values rounded to bfloat16, to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def _same(ours: Floats, theirs: Floats) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return same


def _faults(row: StoredRow) -> Iterator[tuple[str, Read]]:
    """Yield the faults that rows of a dtype can have, then each of them rounded to bfloat16."""
    found = [*_of_scales(row), *_of_items(row)]
    yield from found
    yield "if values are rounded to bfloat16", lambda own: to_bfloat16(own.values)
    yield "if values are cut to bfloat16", lambda own: _cut(own.values)
    yield "if values are rounded to float16", _through_float16
    for text, read in found:
        yield f"{text}, and values are rounded to bfloat16", _rounded(read)


def _of_scales(row: StoredRow) -> Iterator[tuple[str, Read]]:
    if row.items is None or row.row_type.scaling is None:
        return
    yield "if the scale is left out", _items
    yield "if values are divided by the scale", lambda own: _items(own) / _factors(own)
    if row.row_type.scaling.tensor == "float8_e8m0fnu":
        yield "if the exponent bias of the scale is 128", lambda own: own.values * np.float32(0.5)
        yield "if the exponent bias of the scale is 126", lambda own: own.values * np.float32(2)
    else:
        yield (
            "if bfloat16 rounding is applied to the scale before it multiplies",
            lambda own: _items(own) * to_bfloat16(_factors(own)),
        )
    if row.row_type.scaling.per == "block":
        yield (
            "if the first scale of a row serves all its values",
            lambda own: _items(own) * _factors(own)[0],
        )


def _of_items(row: StoredRow) -> Iterator[tuple[str, Read]]:
    match row.row_type.items.name:
        case "e4m3":
            yield "if items are read as float8 e5m2", lambda own: _scaled(own, _e5m2(own))
            yield "if items are read as float8 e4m3fnuz", lambda own: _scaled(own, _fnuz(own))
            yield (
                "if items are read as int8",
                lambda own: _scaled(own, own.stored.view(np.int8).astype(np.float32)),
            )
        case "int8":
            yield (
                "if items are read as unsigned",
                lambda own: _scaled(own, own.stored.view(np.uint8).astype(np.float32)),
            )
        case "int4":
            yield (
                "if the halves of a byte are read in reverse",
                lambda own: _scaled(own, _swap(own)),
            )
        case "bfloat16":
            yield (
                "if items are read as float16",
                lambda own: own.stored.view(np.float16).astype(np.float32),
            )
        case "float16":
            yield (
                "if items are read as bfloat16",
                lambda own: (own.stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32),
            )


def _items(own: StoredRow) -> Floats:
    assert own.items is not None
    return own.items


def _factors(own: StoredRow) -> Floats:
    assert own.factors is not None
    return own.factors


def _scaled(own: StoredRow, items: Floats) -> Floats:
    """Return items times their scales."""
    return items if own.factors is None else items * own.factors


def _cut(values: Floats) -> Floats:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _through_float16(own: StoredRow) -> Floats:
    return own.values.astype(np.float16).astype(np.float32)


def _rounded(read: Read) -> Read:
    return lambda own: to_bfloat16(read(own))


def _e5m2(own: StoredRow) -> Floats:
    codes = own.stored.view(np.uint8).astype(np.uint16)
    return (codes << 8).view(np.float16).astype(np.float32)


def _fnuz(own: StoredRow) -> Floats:
    """Return items with exponent bias 8, of which only 0x80 is NaN."""
    codes = own.stored.view(np.uint8).astype(np.int64)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    sizes = np.where(exponent == 0, mantissa * 2.0**-10, (8 + mantissa) * 2.0 ** (exponent - 11.0))
    values = np.where(codes < 128, sizes, -sizes)
    values[codes == 128] = np.nan
    return values.astype(np.float32)


def _swap(own: StoredRow) -> Floats:
    codes = own.stored.view(np.uint8)
    assert own.row_type.items.values is not None
    swapped = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
    return own.row_type.items.values[swapped[: len(own.values)]]

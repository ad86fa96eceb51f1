"""Records, which tiers hold and send each other, and what gives records by row number.

A record is a row as stored with its own scales behind it, padded to 8 bytes: one read and one copy
bring all that a row needs. In: a bundle's spec. Out: where the parts of a record lie, and tensors
of records as the tables that a look-up takes, without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.formats.tensors import physical_dtype
from engram_cli.runtime.tables import Table

RECORD_ALIGNMENT = 8  # the widest load that a record's begin allows; V4.1's 264 bytes fit exactly

_ITEMS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.uint8,
    "float8_e8m0fnu": torch.uint8,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


class RowSource(Protocol):
    """Something that holds every row of a layer and gives any of them as records.

    May be asked by several threads at once.
    """

    @property
    def rows(self) -> int:
        """The height of the layer's table."""
        ...

    @property
    def record_bytes(self) -> int:
        """The bytes of a record."""
        ...

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` int64[n] to `out` uint8[n, record_bytes], both on the CPU.

        No row twice, in any order. Returns when all are there; padding is whatever it was. Raises
        InputError for rows or an `out` that do not fit, ArtifactError for what cannot be read.
        """
        ...

    def counters(self) -> dict[str, int | float]:
        """Sums since the start: `rows` and `bytes` given, `hits` of a cache, `seconds` inside."""
        ...

    def close(self) -> None:
        """Let go of memory, files and threads; nothing may be asked afterwards."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLayout:
    """Where in a record of `record_bytes` the row lies, and from `scale_begin` on its scales.

    `scale_bytes` is 0 where rows have no scales of their own.
    """

    row_bytes: int
    scale_begin: int
    scale_bytes: int
    record_bytes: int

    def part(self, records: Tensor, part: str) -> Tensor:
        """The bytes of a part, a view [n, row_bytes or scale_bytes] of uint8[n, record_bytes]."""
        if part == ROWS:
            return records[:, : self.row_bytes]
        return records[:, self.scale_begin : self.scale_begin + self.scale_bytes]


def record_layout(spec: BundleSpec) -> RecordLayout:
    """The record of a bundle's rows; scales begin at a multiple of their own size."""
    kind = spec.row_type
    row_bytes = kind.width(spec.dim) * physical_dtype(kind.items).itemsize
    begin, scale_bytes = row_bytes, 0
    if kind.scales is not None and kind.per != "layer":
        size = physical_dtype(kind.scales).itemsize
        begin = _padded(row_bytes, size)
        scale_bytes = kind.scale_shape(1, spec.dim)[1] * size
    return RecordLayout(
        row_bytes=row_bytes,
        scale_begin=begin,
        scale_bytes=scale_bytes,
        record_bytes=_padded(begin + scale_bytes, RECORD_ALIGNMENT),
    )


def table_of(records: Tensor, spec: BundleSpec, *, layer_scale: Tensor | None = None) -> Table:
    """`records` uint8[n, record_bytes], on any device, as a table of n rows: views, no copy.

    `layer_scale`, one float32 on the same device, where one scale serves the whole layer. Raises
    InputError for records of another width, and for a scale too many or too few.
    """
    layout, kind = record_layout(spec), spec.row_type
    if records.dtype != torch.uint8 or records.shape[1:] != (layout.record_bytes,):
        raise InputError(
            f"records are {records.dtype} {tuple(records.shape)}",
            f"records of these rows are torch.uint8 [n, {layout.record_bytes}]",
        )
    if (layer_scale is not None) != (kind.per == "layer"):
        raise InputError(
            f"rows of {spec.dtype} {'need the' if kind.per == 'layer' else 'have no'} layer_scale",
            "give it where one scale serves the whole layer, and only there",
        )
    values = layout.part(records, ROWS).view(_ITEMS[kind.items])
    scales = layer_scale
    if layout.scale_bytes:
        assert kind.scales is not None
        scales = layout.part(records, SCALES).view(_ITEMS[kind.scales])
        if kind.per == "row":
            scales = scales[:, 0]
    return Table(values=values, scales=scales, dim=spec.dim if kind.packed else None)


def _padded(size: int, step: int) -> int:
    return -(-size // step) * step

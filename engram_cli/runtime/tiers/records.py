"""Records: where their parts are, and how vectors are read from them, in plain PyTorch.

A record is a stored row followed by its own scales, padded to 8 bytes, so that one read and one
copy bring all that a row needs. `TierBuffers` are the records that a layer reads from. The Triton
kernels in `kernels.tiers` must equal the functions here bit for bit, NaNs aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.formats.tensors import physical_dtype
from engram_cli.runtime.tables import Table, dequantise
from engram_cli.runtime.tiers.hot_set import HotSet


class RecordSource(Protocol):
    """Holds every row of a layer and copies any of them out as records. Thread safe."""

    @property
    def rows(self) -> int:
        """How many rows the layer's table has."""
        ...

    @property
    def record_bytes(self) -> int:
        """The bytes of a record."""
        ...

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` int64[n] to `out` uint8[n, record_bytes], both on the CPU.

        Rows are distinct, in any order. Returns when all are written; padding is unspecified.
        Raises InputError for rows or an `out` that do not fit, ArtifactError for a failed read.
        """
        ...

    def counters(self) -> dict[str, int | float]:
        """Totals since the start: `rows` and `bytes` copied, cache `hits`, `seconds` spent."""
        ...

    def close(self) -> None:
        """Free memory, close files, end threads; `gather` may not be called afterwards."""
        ...


RECORD_ALIGNMENT = 8  # bytes; the widest aligned load. V4.1's 264 bytes need no padding

_ITEMS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.uint8,
    "float8_e8m0fnu": torch.uint8,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLayout:
    """A record has `record_bytes`: `row_bytes` of the row, then its scales from `scale_begin`.

    `scale_bytes` is 0 where rows have no scales of their own.
    """

    row_bytes: int
    scale_begin: int
    scale_bytes: int
    record_bytes: int

    def part(self, records: Tensor, part: str) -> Tensor:
        """Return a part as a view [n, row_bytes or scale_bytes] of uint8[n, record_bytes]."""
        if part == ROWS:
            return records[:, : self.row_bytes]
        return records[:, self.scale_begin : self.scale_begin + self.scale_bytes]


def record_layout(spec: BundleSpec) -> RecordLayout:
    """Return the record layout of a bundle's rows; scales are aligned to their own size."""
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
    """Return `records` uint8[n, record_bytes], on any device, as a table of n rows, without a copy.

    `layer_scale` is one float32 on the same device, for row types with one scale a layer. Raises
    InputError for records of another width, and where `layer_scale` is missing or not expected.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordForm:
    """How to decode the records of a layer, computed once because calls are many and short.

    `kind` as in `Table`, `width` values of dtype `items`; scales of dtype `scale_items` begin at
    byte `scale_begin`. `layer_scale`: one float32 on the device, where the whole layer has one;
    `host_scale`: the same on the CPU.
    """

    spec: BundleSpec
    kind: str
    has_kernel: bool
    width: int
    items: torch.dtype
    scale_items: torch.dtype
    scale_begin: int
    layer_scale: Tensor | None
    host_scale: Tensor | None

    def table(self, records: Tensor) -> Table:
        """Records uint8[n, record_bytes] as a table: views."""
        scale = self.host_scale if records.device.type == "cpu" else self.layer_scale
        return table_of(records, self.spec, layer_scale=scale)


def record_form(spec: BundleSpec, layer_scale: Tensor | None, device: torch.device) -> RecordForm:
    """The form of a bundle's records, read on `device`."""
    layout = record_layout(spec)
    nothing = torch.empty(0, layout.record_bytes, dtype=torch.uint8)
    host_scale = None if layer_scale is None else layer_scale.cpu()
    table = table_of(nothing, spec, layer_scale=host_scale)
    return RecordForm(
        spec=spec,
        kind=table.kind,
        has_kernel=table.has_kernel,
        width=table.width,
        items=table.values.dtype,
        scale_items=table.values.dtype if table.scales is None else table.scales.dtype,
        scale_begin=layout.scale_begin,
        layer_scale=None if layer_scale is None else layer_scale.to(device),
        host_scale=host_scale,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierBuffers:
    """The records of a layer: rows in `hot_set` are in `hot` [H, record_bytes] by rank.

    Others are in `cold` [n, record_bytes], on the device or pinned on the host, by row number or by
    the slots of a call. `counted` int64[2, 2] on the device: rows asked for, and how many of them
    were hot, for staged calls and for calls that were read in place.
    """

    form: RecordForm
    cold: Tensor
    counted: Tensor
    hot: Tensor | None = None
    hot_set: HotSet | None = None


def read(tier_buffers: TierBuffers, rows: Tensor, slots: Tensor | None, out: Tensor) -> None:
    """Write the vectors of rows int64[n] to `out` [n, dim], rounded once to its dtype.

    `slots` int32[n]: the index in `cold` of each row that is not hot. When None, the row number is
    the index, and the rows are counted.
    """
    index = rows if slots is None else slots
    hot, hot_set, count = tier_buffers.hot, tier_buffers.hot_set, 0
    if hot is None or hot_set is None:
        records = tier_buffers.cold.index_select(0, index)
    else:
        rank = hot_set.rank(rows)
        is_hot = rank >= 0
        records = tier_buffers.cold.index_select(0, index.masked_fill(is_hot, 0))
        records[is_hot] = hot[rank[is_hot]]
        count = int(is_hot.sum())
    if slots is None:
        tier_buffers.counted[1] += torch.tensor([len(rows), count], device=rows.device)
    every = torch.arange(len(rows), device=out.device)
    out.copy_(dequantise(tier_buffers.form.table(records), every, out.dtype))


def key_dtype(height: int) -> torch.dtype:
    """Return the integer dtype in which row numbers up to `height` are sorted and copied."""
    return torch.int32 if height < 2**31 else torch.int64


def cold_keys(rows: Tensor, hot: HotSet | None, height: int) -> Tensor:
    """Rows int64[n] with `height` for each hot one, in `key_dtype`: sorting puts hot rows last."""
    if hot is None:
        return rows.to(key_dtype(height))
    return torch.where(hot.rank(rows) >= 0, height, rows).to(key_dtype(height))


def find_slots(
    keys: Tensor, order: Tensor, height: int, slots: Tensor, found: Tensor, counted: Tensor
) -> None:
    """Number the distinct values of sorted `keys` [n]; `order` int64[n] are their former indices.

    Writes `slots` int32[n], the number of each key in the former order, and `found` [n + 1] like
    `keys`, pinned on the host for a device: the count of distinct keys without `height`, then these
    keys, ascending. Adds to `counted`: all keys, and the hot ones.
    """
    fresh = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=fresh[1:])
    number = fresh.cumsum(0) - 1
    slots.scatter_(0, order, number.to(slots.dtype))
    is_hot = keys == height
    numbers = torch.empty(len(found), dtype=keys.dtype, device=keys.device)
    numbers[1:].scatter_(0, number, keys)
    numbers[0] = number[-1] + ~is_hot[-1]
    found.copy_(numbers, non_blocking=True)
    counted[0, 0] += len(keys)
    counted[0, 1] += is_hot.sum()


class MappedRows:
    """All rows of a layer from memory maps of a bundle: the plain `RecordSource` for tests."""

    def __init__(self, bundle: Bundle, layer: int) -> None:
        self._layout = record_layout(bundle.spec)
        parts = {ROWS: self._layout.row_bytes, SCALES: self._layout.scale_bytes}
        self._maps = {
            part: [own.reshape(len(own), -1).view(np.uint8) for own in bundle.maps(layer, part)]
            for part, size in parts.items()
            if size
        }
        self.rows = bundle.spec.rows(layer)
        self.record_bytes = self._layout.record_bytes
        self._given = 0

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` to `out` (`RecordSource.gather`)."""
        wanted = rows.numpy()
        for part, maps in self._maps.items():
            first = 0
            for own in maps:
                here = np.flatnonzero((wanted >= first) & (wanted < first + len(own)))
                lines = torch.from_numpy(own.take(wanted[here] - first, axis=0))
                self._layout.part(out, part)[torch.from_numpy(here)] = lines
                first += len(own)
        self._given += len(wanted)

    def counters(self) -> dict[str, int | float]:
        """Totals since the start (`RecordSource.counters`); seconds are not measured."""
        size = self._given * self.record_bytes
        return {"rows": self._given, "bytes": size, "hits": 0, "seconds": 0.0}

    def close(self) -> None:
        """Close the maps."""
        self._maps = {}

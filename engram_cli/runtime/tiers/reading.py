"""Vectors out of two places, in plain torch: hot rows by rank, the others where they lie.

Twin of the kernels in `kernels.tiers`, which must equal it bit for bit, NaNs aside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.tables import Table, dequantise
from engram_cli.runtime.tiers.hot_set import HotSet
from engram_cli.runtime.tiers.source import record_layout, table_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordForm:
    """What the records of a layer mean, computed once: calls are many and short.

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
class Shelves:
    """Where rows are read: those in `hot_set` in `hot` [H, record_bytes] by rank, others in `cold`.

    `cold` [n, record_bytes] lies on the device, or pinned on the host, and is indexed by row number
    or by the slots of a call. `counted` int64[2, 2] on the device: rows asked for, and hot ones of
    them, of calls that were staged and of those that were read in place.
    """

    form: RecordForm
    cold: Tensor
    counted: Tensor
    hot: Tensor | None = None
    hot_set: HotSet | None = None


def read(shelves: Shelves, rows: Tensor, slots: Tensor | None, out: Tensor) -> None:
    """Write the vectors of rows int64[n] to `out` [n, dim], rounded once to its dtype.

    `slots` int32[n]: the place in `cold` of each row that is not hot; its number when None, and
    then the rows are counted.
    """
    index = rows if slots is None else slots
    hot, hot_set, count = shelves.hot, shelves.hot_set, 0
    if hot is None or hot_set is None:
        records = shelves.cold.index_select(0, index)
    else:
        rank = hot_set.rank(rows)
        is_hot = rank >= 0
        records = shelves.cold.index_select(0, index.masked_fill(is_hot, 0))
        records[is_hot] = hot[rank[is_hot]]
        count = int(is_hot.sum())
    if slots is None:
        shelves.counted[1] += torch.tensor([len(rows), count], device=rows.device)
    every = torch.arange(len(rows), device=out.device)
    out.copy_(dequantise(shelves.form.table(records), every, out.dtype))


def key_dtype(height: int) -> torch.dtype:
    """The integers that row numbers up to `height` are sorted and sent as."""
    return torch.int32 if height < 2**31 else torch.int64


def cold_keys(rows: Tensor, hot: HotSet | None, height: int) -> Tensor:
    """Rows int64[n] with `height` for each hot one, in `key_dtype`: sorting puts hot rows last."""
    if hot is None:
        return rows.to(key_dtype(height))
    return torch.where(hot.rank(rows) >= 0, height, rows).to(key_dtype(height))


def find_slots(
    keys: Tensor, order: Tensor, height: int, slots: Tensor, found: Tensor, counted: Tensor
) -> None:
    """Number the distinct ones of sorted `keys` [n]; `order` int64[n] says where each came from.

    Written: `slots` int32[n], the number of each in the former order; `found` [n + 1] like `keys`,
    pinned on the host for a device: how many there are without `height`, then they, ascending;
    added to `counted`: all, and hot ones.
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

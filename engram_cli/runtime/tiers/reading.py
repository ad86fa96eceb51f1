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
from engram_cli.runtime.tiers.source import table_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordForm:
    """What the records of a layer mean. `layer_scale`: one float32 on the device, where the whole
    layer has one; `host_scale`: the same on the CPU.
    """

    spec: BundleSpec
    layer_scale: Tensor | None = None
    host_scale: Tensor | None = None

    def table(self, records: Tensor) -> Table:
        """Records uint8[n, record_bytes] as a table: views."""
        scale = self.host_scale if records.device.type == "cpu" else self.layer_scale
        return table_of(records, self.spec, layer_scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelves:
    """Where rows are read: those in `hot_set` in `hot` [H, record_bytes] by rank, others in `cold`.

    `cold` [n, record_bytes] lies on the device, or pinned on the host, and is indexed by row number
    or by the slots of a call. `counted` int64[3] on the device: rows asked for that were hot,
    that were staged, each as often as it was asked for, and that were read in place.
    """

    form: RecordForm
    cold: Tensor
    counted: Tensor
    hot: Tensor | None = None
    hot_set: HotSet | None = None


def read(shelves: Shelves, rows: Tensor, slots: Tensor | None, out: Tensor) -> None:
    """Write the vectors of rows int64[n] to `out` [n, dim], rounded once to its dtype.

    `slots` int64[n]: the place in `cold` of each row that is not hot; its number when None, and
    then the rows are counted.
    """
    index = rows if slots is None else slots
    hot, hot_set = shelves.hot, shelves.hot_set
    if hot is None or hot_set is None:
        records = shelves.cold.index_select(0, index)
    else:
        rank = hot_set.rank(rows)
        is_hot = rank >= 0
        records = shelves.cold.index_select(0, index.masked_fill(is_hot, 0))
        records[is_hot] = hot[rank[is_hot]]
    if slots is None:
        _count(shelves, rows, 2)
    every = torch.arange(len(rows), device=out.device)
    out.copy_(dequantise(shelves.form.table(records), every, out.dtype))


def cold_keys(rows: Tensor, shelves: Shelves, height: int) -> Tensor:
    """Rows int64[n] with `height` for each hot one, int32 where that fits; they are counted.

    Sorting then puts hot rows last.
    """
    dtype = torch.int32 if height < 2**31 else torch.int64
    _count(shelves, rows, 1)
    if shelves.hot_set is None:
        return rows.to(dtype)
    return torch.where(shelves.hot_set.rank(rows) >= 0, height, rows).to(dtype)


def _count(shelves: Shelves, rows: Tensor, below: int) -> None:
    hot: int | Tensor = 0
    if shelves.hot_set is not None:
        hot = (shelves.hot_set.rank(rows) >= 0).sum()
    shelves.counted[0] += hot
    shelves.counted[below] += len(rows) - hot

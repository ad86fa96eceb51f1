"""Records: where their parts are, and how vectors are read from them, in plain PyTorch.

Where they are is in `rows.dtypes.RecordLayout`. `TierBuffers` are the records that a layer reads
from. The Triton kernels in `kernels.tiers` must equal the functions here bit for bit, NaNs aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.patches.replaced import as_bytes
from engram_cli.rows.dtypes import RecordLayout
from engram_cli.rows.source import Span
from engram_cli.runtime.sharding.hot import HotBlocks
from engram_cli.runtime.tables import HELD_DTYPES, Table, dequantise
from engram_cli.runtime.tiers.hot_set import HotSet


class RecordSource(Protocol):
    """Holds all `rows` rows of a layer, and copies any of them out as records. Thread safe."""

    rows: int
    record_bytes: int

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


READ_HINT = "check the disk, then write the bundle again with engram attach --force"


def read_span(span: Span, part: str, begin: int, target: memoryview) -> None:
    """Fill `target` with the bytes of a part's span from its `begin` on. Raises ArtifactError."""
    try:
        with span.file.open("rb", buffering=0) as file:
            file.seek(span.begin + begin)
            while target and (count := file.readinto(target)):
                target = target[count:]
    except OSError as error:
        raise ArtifactError(f"cannot read {span.file}: {error.strerror}", READ_HINT) from None
    if target:
        raise ArtifactError(f"{span.file} ends in the middle of its {part}", READ_HINT)


def read_rows(span: Span, part: str, line: int, target: NDArray[np.uint8]) -> None:
    """Fill `target` uint8[n, width] with rows of a span from its `line` on. Raises ArtifactError.

    Rows with others between them are read with these, which a disk brings anyway.
    """
    count, width = target.shape
    stride = span.stride or width
    if stride == width and target.flags.c_contiguous:
        read_span(span, part, line * width, target.reshape(-1).data)
        return
    piece = np.empty((count - 1) * stride + width, dtype=np.uint8)
    read_span(span, part, line * stride, piece.data)
    target[:] = np.lib.stride_tricks.as_strided(piece, (count, width), (stride, 1))


def patched_records(bundle: Bundle, layer: int) -> tuple[NDArray[np.int64], Tensor] | None:
    """Return the rows of a layer that patches replace, int64[n] ascending, and their records.

    Records are uint8[n, record_bytes]. None where there are none.
    """
    own, layout = bundle.patched.get(layer), record_layout(bundle.spec)
    if own is None:
        return None
    records = torch.zeros(len(own), layout.record_bytes, dtype=torch.uint8)
    parts = (own.rows, own.row_scales)
    for part, values in zip((ROWS, SCALES), parts, strict=True):
        if values is not None:
            layout.part(records.numpy(), part)[:] = as_bytes(values)
    return own.ids, records


def record_layout(spec: BundleSpec) -> RecordLayout:
    """Return the record layout of a bundle's rows."""
    return spec.row_type.record_layout(spec.dim)


def table_of(records: Tensor, spec: BundleSpec, *, layer_scale: Tensor | None = None) -> Table:
    """Return `records` uint8[n, record_bytes], on any device, as a table of n rows, without a copy.

    `layer_scale` is one float32 on the same device, for row types with one scale a layer. Raises
    InputError for records of another width, and where `layer_scale` is missing or not expected.
    """
    layout, row_type = record_layout(spec), spec.row_type
    if records.dtype != torch.uint8 or records.shape[1:] != (layout.record_bytes,):
        raise InputError(
            f"records are {records.dtype} {tuple(records.shape)}",
            f"records of these rows are torch.uint8 [n, {layout.record_bytes}]",
        )
    if (layer_scale is not None) != row_type.of_layer:
        raise InputError(
            f"rows of {spec.dtype} {'need the' if row_type.of_layer else 'have no'} layer_scale",
            "give it where one scale serves the whole layer, and only there",
        )
    values = layout.part(records, ROWS).view(HELD_DTYPES[row_type.items.tensor][0])
    scales = layer_scale
    if layout.scale_bytes:
        assert row_type.scaling is not None
        scales = layout.part(records, SCALES).view(HELD_DTYPES[row_type.scaling.tensor][0])
        if row_type.scaling.per == "row":
            scales = scales[:, 0]
    dim = spec.dim if row_type.items.packed else None
    return Table(values=values, scales=scales, dim=dim, row_type=row_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordForm:
    """Says how to decode the records of a layer; computed once because calls are many and short.

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
    """Return the form of a bundle's records, read on `device`."""
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
    """Holds the records of a layer: rows in `hot_set` are in `hot` [H, record_bytes] by rank.

    Others are in `cold` [n, record_bytes], on the device or pinned on the host, by row number or by
    the slots of a call. `counted` int64[2, 2] on the device: rows asked for, and how many of them
    were hot, for staged calls and for calls that were read in place. `peers`: the hot records where
    several GPUs have them; `hot` are then those of one.
    """

    form: RecordForm
    cold: Tensor
    counted: Tensor
    hot: Tensor | None = None
    hot_set: HotSet | None = None
    peers: HotBlocks | None = None


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
        warm = rank[is_hot]
        records[is_hot] = hot[warm] if tier_buffers.peers is None else tier_buffers.peers.pick(warm)
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

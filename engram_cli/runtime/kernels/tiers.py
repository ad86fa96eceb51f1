"""Rows out of two places as Triton kernels: hot ones in HBM by rank, the others staged or in place.

In place means pinned host memory, read by the GPU over the bus. Equal to `tiers.reading`, the plain
twin, to the bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.launch import converts_fp8
from engram_cli.runtime.kernels.lookup import GROUP, _deliver
from engram_cli.runtime.tiers.reading import Shelves

_KEY_ROWS = 1024  # rows a program of the keys' kernel


@triton.jit
def _count_bits(word):
    """The bits of an int32 that are set; shifts drag the sign along, the masks drop it."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24) & 0xFF


@triton.jit
def _is_hot(rows, live, words):
    """Whether rows int64[R] are hot, and the word that says so."""
    word = tl.load(words + (rows >> 5), mask=live, other=0)
    bit = (rows & 31).to(tl.int32)
    return live & (((word >> bit) & 1) != 0), word


@triton.jit
def _rank(rows, hot, word, words, ranks):
    """int64[R]: the ranks of hot rows."""
    below = (1 << (rows & 31)) - 1
    rank = tl.load(ranks + (rows >> 7), mask=hot, other=0)
    rank += _count_bits((word & below).to(tl.int32))
    mine = (rows >> 5) & 3
    for k in tl.static_range(3):
        earlier = tl.load(words + ((rows >> 7) << 2) + k, mask=hot & (k < mine), other=0)
        rank += _count_bits(earlier)
    return rank.to(tl.int64)


@triton.jit
def _count(counted, live, hot, BELOW: tl.constexpr, HOT: tl.constexpr):
    """Add the hot rows of a program to int64[3], and the others at BELOW."""
    asked = tl.sum(live.to(tl.int32))
    if HOT:
        warm = tl.sum(hot.to(tl.int32))
        tl.atomic_add(counted, warm.to(tl.int64), sem="relaxed")
        asked -= warm
    tl.atomic_add(counted + BELOW, asked.to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["count"])
def read_kernel(
    out,  # [count, DIM]
    rows,  # int64 [count]
    slots,  # int64 [count]: the place of a row in the cold table, its number without SLOTS
    cold,  # [n, DIM] by strides
    cold_scales,
    hot,  # [H, DIM] by the same strides
    hot_scales,
    words,
    ranks,
    counted,  # int64 [3]
    count,
    DIM: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    HOT: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Grid: blocks of ROWS rows. KIND raw copies words, any other makes numbers of them."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = lane < count
    row = tl.load(rows + lane, mask=live, other=0)
    place = row
    is_hot = live
    if SLOTS:
        place = tl.load(slots + lane, mask=live, other=0)
    if HOT:
        is_hot, word = _is_hot(row, live, words)
        place = tl.where(is_hot, _rank(row, is_hot, word, words, ranks), place)
    if not SLOTS:
        _count(counted, live, is_hot, 2, HOT)
    for chunk in tl.static_range(CHUNKS):
        column = chunk * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        valid = live[:, None]
        if DIM % BLOCK_D != 0:
            valid = valid & (column < DIM)
        offset = place[:, None] * TABLE_STRIDE + column
        address = cold + offset
        if HOT:
            address = tl.where(is_hot[:, None], hot + offset, address)
        raw = tl.load(tl.max_contiguous(address, [1, VECTOR]), mask=valid)
        factor = place
        if KIND == "grouped":
            group = chunk * (BLOCK_D // GROUP) + tl.arange(0, BLOCK_D // GROUP)[None, :]
            present = live[:, None] & (group < DIM // GROUP)
            offset = place[:, None] * SCALE_STRIDE + group
            address = cold_scales + offset
            if HOT:
                address = tl.where(is_hot[:, None], hot_scales + offset, address)
            factor = tl.load(address, mask=present, other=0)
        if KIND == "scaled":
            factor = tl.load(hot_scales)
        if KIND == "per-row":
            address = cold_scales + place * SCALE_STRIDE
            if HOT:
                address = tl.where(is_hot, hot_scales + place * SCALE_STRIDE, address)
            factor = tl.load(address, mask=live, other=0)
        if KIND == "raw":
            tl.store(out + lane[:, None] * DIM + column, raw, mask=valid)
        else:
            _deliver(out, lane, live, raw, factor, chunk, DIM, KIND, BITS, BLOCK_D)


@triton.jit(do_not_specialize=["count", "height"])
def keys_kernel(
    keys,  # int32 or int64 [count]
    rows,  # int64 [count]
    words,
    counted,
    count,
    height,
    HOT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid: blocks of ROWS rows."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = lane < count
    row = tl.load(rows + lane, mask=live, other=0)
    is_hot = live
    if HOT:
        is_hot, _ = _is_hot(row, live, words)
        row = tl.where(is_hot, height, row)
    _count(counted, live, is_hot, 1, HOT)
    tl.store(keys + lane, row.to(keys.dtype.element_ty), mask=live)


def cold_keys(rows: Tensor, shelves: Shelves, height: int) -> Tensor:
    """`reading.cold_keys`."""
    dtype = torch.int32 if height < 2**31 else torch.int64
    keys = torch.empty(len(rows), dtype=dtype, device=rows.device)
    words = rows if shelves.hot_set is None else shelves.hot_set.words
    with _on(rows.device):
        keys_kernel[(triton.cdiv(len(rows), _KEY_ROWS),)](
            keys,
            rows,
            words,
            shelves.counted,
            len(rows),
            height,
            HOT=shelves.hot_set is not None,
            ROWS=_KEY_ROWS,
        )
    return keys


def read(
    shelves: Shelves,
    rows: Tensor,
    slots: Tensor | None,
    out: Tensor,
    *,
    each: int | None = None,
    bits: bool | None = None,
) -> None:
    """`reading.read` of tables that kernels decode.

    `each` values a thread and `bits` (decode e4m3 by integer operations) are chosen when None.
    """
    form = shelves.form
    cold = form.table(shelves.cold)
    hot = cold if shelves.hot is None else form.table(shelves.hot)
    kind, values = cold.kind, [cold.values, hot.values]
    scales = [cold.scales, hot.scales] if cold.scales is not None else values
    if bits is None:
        bits = not converts_fp8(out.device)
    if kind in ("grouped", "scaled"):
        values = [v.view(torch.uint8 if bits else torch.float8_e4m3fn) for v in values]
    if kind == "grouped":
        scales = [s.view(torch.uint8) for s in scales]
    if kind == "scaled":
        scales = [form.layer_scale] * 2
    constants = {
        "SCALE_STRIDE": scales[0].stride(0) if kind in ("grouped", "per-row") else 0,
        "KIND": kind,
        "BITS": bits and kind in ("grouped", "scaled"),
    }
    _launch(shelves, rows, slots, out, values, scales, each, constants)


def read_records(shelves: Shelves, rows: Tensor, slots: Tensor | None) -> Tensor:
    """uint8[n, record_bytes]: the records of rows int64[n], for what only the twin decodes."""
    out = torch.empty(
        (len(rows), shelves.cold.shape[1] // 8), dtype=torch.int64, device=rows.device
    )
    values = [shelves.cold.view(torch.int64)] * 2
    if shelves.hot is not None:
        values[1] = shelves.hot.view(torch.int64)
    constants = {"SCALE_STRIDE": 0, "KIND": "raw", "BITS": False}
    _launch(shelves, rows, slots, out, values, values, None, constants)
    return out.view(torch.uint8)


def _launch(
    shelves: Shelves,
    rows: Tensor,
    slots: Tensor | None,
    out: Tensor,
    values: list[Tensor],
    scales: list[Tensor],
    each: int | None,
    constants: dict[str, Any],
) -> None:
    count, dim = out.shape
    if not count:
        return
    block = min(triton.next_power_of_2(dim), 1024)
    if each is None:
        each = _values_a_thread(count * block)
    lanes = triton.next_power_of_2(max(1, 32 * each // block))
    size = max(values[0].element_size(), out.element_size())
    hot_set = shelves.hot_set
    with _on(out.device):
        read_kernel[(triton.cdiv(count, lanes),)](
            out,
            rows,
            rows if slots is None else slots,
            values[0],
            scales[0],
            values[1],
            scales[1],
            rows if hot_set is None else hot_set.words,
            rows if hot_set is None else hot_set.ranks,
            shelves.counted,
            count,
            DIM=dim,
            TABLE_STRIDE=values[0].stride(0),
            VECTOR=min(block, max(1, 16 // size)),
            HOT=hot_set is not None,
            SLOTS=slots is not None,
            ROWS=lanes,
            BLOCK_D=block,
            CHUNKS=triton.cdiv(dim, block),
            num_warps=1,
            **constants,
        )


def _values_a_thread(values: int) -> int:
    """As in `launch.choose_plan`."""
    return 8 if values <= 2**17 else 32 if values <= 2**21 else 64


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

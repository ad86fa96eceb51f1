"""Triton kernels that read rows from two tables: hot rows in HBM, others staged or in place.

In place means pinned host memory, read by the GPU over the bus. The results must equal those of
`tiers.records` to the bit.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.lookup import columns_of, deliver, groups_of
from engram_cli.runtime.kernels.lookup_launcher import converts_fp8, values_a_thread
from engram_cli.runtime.kernels.places import find_hot, owner_address, rank_of
from engram_cli.runtime.kernels.tiles import Repeated, launch, parts_of, power_of_two, seen
from engram_cli.runtime.tiers.hot_set import HotSet
from engram_cli.runtime.tiers.records import TierBuffers, key_dtype

_KEY_ROWS = 1024  # rows a program of the keys' kernel


@triton.jit(do_not_specialize=["count", "rank"])
def read_kernel(
    out,  # [count, DIM]
    rows,  # int64 [count]
    slots,  # int32 [count]: the place of a row in the cold table; None where its number is
    cold,  # records [n, TABLE_STRIDE], the first DIM of them the row
    cold_scales,  # the same, as scales: from SCALE_BEGIN on
    hot,  # records [H, TABLE_STRIDE]; this and what follows may be None
    hot_scales,
    layer_scale,
    words,
    ranks,
    addresses,  # of the hot records of each rank, where several GPUs have them
    here,  # int64 [1]: hot rows that this GPU of `rank` has; None with `addresses`
    rank,
    counted,  # int64 [2]: asked for, hot
    count,
    DIM: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    SCALE_BEGIN: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    SHARDS: tl.constexpr,
    RECORD: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Read rows; KIND raw copies words, any other decodes them. Grid: blocks of ROWS rows."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = lane < count
    row = tl.load(rows + lane, mask=live, other=0)
    place = row
    is_hot = live
    if slots is not None:
        place = tl.load(slots + lane, mask=live, other=0).to(tl.int64)
    if words is not None:
        is_hot, word = find_hot(row, live, words)
        place = tl.where(is_hot, rank_of(row, is_hot, word, words, ranks), place)
    if SHARDS:
        owner = (place.to(tl.uint64) % SHARDS).to(tl.int32)
        begin = owner_address(addresses, 0, owner, 0, 1, SHARDS) + place // SHARDS * RECORD
        near = tl.sum((is_hot & (owner == rank)).to(tl.int64))
        tl.atomic_add(here, near, mask=near > 0, sem="relaxed")
    if slots is None:
        if tl.program_id(0) == 0:
            tl.atomic_add(counted, count.to(tl.int64), sem="relaxed")
        if words is not None:
            warm = tl.sum(is_hot.to(tl.int32))
            tl.atomic_add(counted + 1, warm.to(tl.int64), mask=warm > 0, sem="relaxed")
    for chunk in tl.static_range(CHUNKS):
        column, valid = columns_of(chunk, live, DIM, BLOCK_D)
        offset = place[:, None] * TABLE_STRIDE + column
        address = cold + offset
        if SHARDS:
            address = tl.where(is_hot[:, None], begin[:, None].to(hot.dtype) + column, address)
            address = tl.multiple_of(address, [1, ALIGNED])
        elif words is not None:
            address = tl.where(is_hot[:, None], hot + offset, address)
        raw = tl.load(tl.max_contiguous(address, [1, VECTOR]), mask=valid)
        factor = place
        if KIND == "grouped":
            group, present = groups_of(chunk, live, DIM, BLOCK_D)
            offset = place[:, None] * SCALE_STRIDE + SCALE_BEGIN + group
            address = cold_scales + offset
            if SHARDS:
                warm = begin[:, None].to(hot_scales.dtype) + SCALE_BEGIN + group
                address = tl.where(is_hot[:, None], warm, address)
            elif words is not None:
                address = tl.where(is_hot[:, None], hot_scales + offset, address)
            factor = tl.load(address, mask=present, other=0)
        if KIND == "scaled":
            factor = tl.load(layer_scale)
        if KIND == "per-row":
            offset = place * SCALE_STRIDE + SCALE_BEGIN
            address = cold_scales + offset
            if SHARDS:
                warm = begin.to(hot_scales.dtype) + SCALE_BEGIN
                address = tl.where(is_hot, warm, address)
            elif words is not None:
                address = tl.where(is_hot, hot_scales + offset, address)
            factor = tl.load(address, mask=live, other=0)
        if KIND == "raw":
            tl.store(out + lane[:, None] * DIM + column, raw, mask=valid)
        else:
            deliver(out, lane, live, raw, factor, chunk, DIM, KIND, BITS, BLOCK_D)


@triton.jit(do_not_specialize=["count", "height"])
def keys_kernel(
    keys,  # int32 or int64 [count]
    rows,  # int64 [count]
    words,
    count,
    height,
    ROWS: tl.constexpr,
):
    """Write the keys of rows (`records.cold_keys`). Grid: blocks of ROWS rows."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = lane < count
    row = tl.load(rows + lane, mask=live, other=0)
    is_hot, _ = find_hot(row, live, words)
    row = tl.where(is_hot, height, row)
    tl.store(keys + lane, row.to(keys.dtype.element_ty), mask=live)


@triton.jit
def _fresh(keys, lane, live):
    """Return the keys int[R] there, and which of them differ from the one before."""
    key = tl.load(keys + lane, mask=live, other=0)
    before = tl.load(keys + lane - 1, mask=live & (lane > 0), other=0)
    return key, live & ((lane == 0) | (key != before))


@triton.jit(do_not_specialize=["count"])
def fresh_kernel(
    numbers,  # int32 [blocks]: how many keys of a block differ from the one before
    keys,  # int32 or int64 [count], ascending
    count,
    ROWS: tl.constexpr,
):
    """Grid: blocks of ROWS keys."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, fresh = _fresh(keys, lane, lane < count)
    tl.store(numbers + tl.program_id(0), tl.sum(fresh.to(tl.int32)))


@triton.jit(do_not_specialize=["count", "height"])
def slots_kernel(
    slots,  # int32 [count]
    found,  # like keys [count + 1], in host memory
    counted,  # int64 [2]: asked for, hot
    keys,  # int32 or int64 [count], ascending
    order,  # int64 [count]
    numbers,  # int32 [blocks]: see fresh_kernel
    count,
    height,
    ROWS: tl.constexpr,
):
    """Grid: blocks of ROWS keys."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = lane < count
    key, fresh = _fresh(keys, lane, live)
    number = tl.cumsum(fresh.to(tl.int32)) - 1
    for first in range(0, tl.program_id(0), ROWS):
        block = first + tl.arange(0, ROWS)
        number += tl.sum(tl.load(numbers + block, mask=block < tl.program_id(0), other=0))
    is_hot = key == height
    tl.store(slots + tl.load(order + lane, mask=live, other=0), number, mask=live)
    tl.store(found + 1 + number, key, mask=fresh & (is_hot == 0))
    last = live & (lane == count - 1)
    many = number + tl.where(is_hot, 0, 1)
    tl.store(found + lane * 0, many.to(found.dtype.element_ty), mask=last)
    # Hot rows come last: the first of them says how many there are.
    tl.atomic_add(counted + lane * 0, lane + 1, mask=last, sem="relaxed")
    tl.atomic_add(counted + 1 + lane * 0, count - lane, mask=fresh & is_hot, sem="relaxed")


_READS = Repeated(read_kernel)


def cold_keys(rows: Tensor, hot: HotSet | None, height: int) -> Tensor:
    """Return the keys of rows (`records.cold_keys`)."""
    if hot is None:
        return rows.to(key_dtype(height))
    keys = torch.empty(len(rows), dtype=key_dtype(height), device=rows.device)
    blocks = parts_of(len(rows), _KEY_ROWS)
    launch(keys_kernel, (blocks,), keys, rows, hot.words, len(rows), height, ROWS=_KEY_ROWS)
    return keys


def find_slots(
    keys: Tensor, order: Tensor, height: int, slots: Tensor, found: Tensor, counted: Tensor
) -> None:
    """Number the distinct keys (`records.find_slots`)."""
    count, blocks = len(keys), parts_of(len(keys), _KEY_ROWS)
    numbers = torch.empty(blocks, dtype=torch.int32, device=keys.device)
    launch(fresh_kernel, (blocks,), numbers, keys, count, ROWS=_KEY_ROWS)
    launch(
        slots_kernel,
        (blocks,),
        slots,
        found,
        counted,
        keys,
        order,
        numbers,
        count,
        height,
        ROWS=_KEY_ROWS,
    )


def read(
    tier_buffers: TierBuffers,
    rows: Tensor,
    slots: Tensor | None,
    out: Tensor,
    *,
    each: int | None = None,
    bits: bool | None = None,
) -> None:
    """Write the vectors of rows that kernels decode (`records.read`).

    `each` values a thread and `bits` (decode e4m3 by integer operations) are chosen when None.
    """
    form = tier_buffers.form
    items, fp8 = form.items, form.kind in ("grouped", "scaled")
    if bits is None:
        bits = not converts_fp8(out.device)
    if fp8:
        items = torch.uint8 if bits else torch.float8_e4m3fn
    has_scales = form.kind in ("grouped", "per-row")
    scale_items = form.scale_items if has_scales else items
    _launch(tier_buffers, rows, slots, out, form.kind, items, scale_items, fp8 and bits, each)


def read_records(tier_buffers: TierBuffers, rows: Tensor, slots: Tensor | None) -> Tensor:
    """Return the records uint8[n, record_bytes] of rows int64[n] that only the twin decodes."""
    width = tier_buffers.cold.shape[1] // 8
    out = torch.empty((len(rows), width), dtype=torch.int64, device=rows.device)
    _launch(tier_buffers, rows, slots, out, "raw", torch.int64, torch.int64, False, None)
    return out.view(torch.uint8)


def _launch(
    tier_buffers: TierBuffers,
    rows: Tensor,
    slots: Tensor | None,
    out: Tensor,
    kind: str,
    items: torch.dtype,
    scale_items: torch.dtype,
    bits: bool,
    each: int | None,
) -> None:
    (count, dim), cold, hot_set = out.shape, tier_buffers.cold, tier_buffers.hot_set
    hot = None if hot_set is None else tier_buffers.hot
    peers = None if hot is None else tier_buffers.peers
    addresses = () if peers is None else peers.addresses
    has_scales = kind in ("grouped", "per-row")
    rest = (
        tier_buffers.form.layer_scale,
        *((None, None) if hot_set is None else (hot_set.words, hot_set.ranks)),
        *((None, None, 0) if peers is None else (addresses, peers.here, peers.rank)),
        tier_buffers.counted[1],
    )
    given = (out, rows, slots, cold, cold, hot, hot, *rest)
    begin = tier_buffers.form.scale_begin
    known = (kind, items, scale_items, bits, each, begin, out.device, *map(seen, given))
    if again := _READS.find(known):
        again(*given)
        return
    block = min(power_of_two(dim), 1024)
    if each is None:
        each = 8 if slots is None else values_a_thread(count * block)
    lanes = power_of_two(max(1, 32 * each // block))
    _READS.launch(
        known,
        (parts_of(count, lanes),),
        (
            *(out, rows, slots, cold.view(items), cold.view(scale_items)),
            *(None if hot is None else hot.view(of) for of in (items, scale_items)),
            *rest,
        ),
        count,
        DIM=dim,
        TABLE_STRIDE=cold.shape[1] // items.itemsize,
        SCALE_STRIDE=cold.shape[1] // scale_items.itemsize if has_scales else 0,
        SCALE_BEGIN=begin // scale_items.itemsize if has_scales else 0,
        KIND=kind,
        BITS=bits,
        VECTOR=min(block, max(1, 16 // max(items.itemsize, out.element_size()))),
        ROWS=lanes,
        BLOCK_D=block,
        CHUNKS=parts_of(dim, block),
        SHARDS=len(addresses),
        RECORD=cold.shape[1],
        ALIGNED=gcd(16, cold.shape[1], *addresses),
        num_warps=1,
    )

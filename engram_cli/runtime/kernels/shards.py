"""Triton kernel that reads rows by their numbers from the memory of the GPUs that own them.

`lookup` does the same in one launch with the hash. The results must equal those of the plain
functions in `sharding.rows` to the bit.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.lookup import copy_rows
from engram_cli.runtime.kernels.lookup_launcher import Shards, converts_fp8, values_a_thread
from engram_cli.runtime.kernels.places import count_rows, locate
from engram_cli.runtime.kernels.tiles import launch, parts_of, power_of_two


@triton.jit(do_not_specialize=["count", "rank"])
def read_kernel(
    out,  # [count, DIM]
    numbers,  # int64 [count]
    table,  # of this GPU, for its dtype
    scale,  # of all rows if SCALES_HERE, else of this GPU; or one
    addresses,  # int64 by rank, of rows, then of scales
    hot,  # a tuple of one tensor [H, DIM]; this and what follows to `counted` may be None
    hot_scales,
    words,
    ranks,
    counted,
    rank,
    count,
    DIM: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    SHARDS: tl.constexpr,
    SCALES_HERE: tl.constexpr,
    ITEM: tl.constexpr,
    SCALE_ITEM: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Read rows of one layer; KIND raw copies items. Grid: blocks of ROWS rows."""
    lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = lane < count
    rows = tl.load(numbers + lane, mask=live, other=0)
    begin, scale_begin, here = locate(
        rows,
        live,
        0,
        addresses,
        hot,
        hot_scales,
        words,
        ranks,
        rank,
        1,
        SHARDS,
        TABLE_STRIDE * ITEM,
        SCALE_STRIDE * SCALE_ITEM,
        SCALES_HERE,
    )
    copy_rows(
        out,
        lane,
        live,
        rows,
        table,
        scale,
        begin,
        scale_begin,
        DIM,
        TABLE_STRIDE,
        SCALE_STRIDE,
        KIND,
        BITS,
        VECTOR,
        BLOCK_D,
        CHUNKS,
        True,
        SHARDS,
        SCALES_HERE,
        ALIGNED,
    )
    if counted is not None:
        count_rows(counted, here, count.to(tl.int64))


def alone(table: Tensor) -> Shards:
    """Return what `read` is told of rows that are all in one table."""
    return Shards(world=1, rank=0, addresses=(table.data_ptr(),), scales_here=True)


def read(
    shards: Shards, numbers: Tensor, table: Tensor, scales: Tensor | None, out: Tensor, kind: str
) -> None:
    """Write the vectors of rows int64[n] of one layer to `out` [n, dim], decoded as `kind` says.

    `shards` are those of the layer; `table` and `scales` as in `lookup_launcher.look_up`. As "raw"
    the items [n, dim] of the table's dtype are copied.
    """
    count, dim = out.shape
    fp8, bits = kind in ("grouped", "scaled"), not converts_fp8(out.device)
    if fp8:
        table = table.view(torch.uint8 if bits else torch.float8_e4m3fn)
    if kind == "grouped":
        assert scales is not None
        scales = scales.view(torch.uint8)
    scales = table if scales is None else scales
    block = min(power_of_two(dim), 1024)
    lanes = power_of_two(max(1, 32 * values_a_thread(count * block) // block))
    item = table.element_size()
    launch(
        read_kernel,
        (parts_of(count, lanes),),
        *(out, numbers, table, scales, shards.addresses, shards.hot, shards.hot_scales),
        *(shards.words, shards.ranks, shards.counted, shards.rank, count),
        DIM=dim,
        TABLE_STRIDE=table.stride(0),
        SCALE_STRIDE=scales.stride(0) if kind in ("grouped", "per-row") else 0,
        KIND=kind,
        BITS=fp8 and bits,
        VECTOR=min(block, max(1, 16 // max(item, out.element_size()))),
        ROWS=lanes,
        BLOCK_D=block,
        CHUNKS=parts_of(dim, block),
        SHARDS=shards.world,
        SCALES_HERE=shards.scales_here,
        ITEM=item,
        SCALE_ITEM=scales.element_size(),
        ALIGNED=gcd(16, table.stride(0) * item, *shards.addresses[: shards.world]),
        num_warps=1,
    )

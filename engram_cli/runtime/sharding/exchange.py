"""Rows by messages, for GPUs that cannot read each other: row numbers go out, rows come back.

Two all-to-all collectives, on NCCL for GPUs and gloo for the CPU. `at_most` bounds how many rows
any rank asks for; then all messages have that size, and nothing waits for the device. Without a
bound the counts are exchanged first, and the host waits for them. All ranks call together, with
the same bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engram_cli.runtime.sharding.owners import by_owner, index_at_owner, owner_of

_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


def exchange_rows(
    owners: Tensor, index: Tensor, parts: Sequence[Tensor], processes: Any, at_most: int | None
) -> list[Tensor]:
    """Return the rows at `index` int64[n] of `owners` int64[n], uint8 [n, width] of each part.

    `parts`: what this rank owns, uint8 [rows, width] each; any rank has one row at least.
    """
    world = dist.get_world_size(processes)
    order, counts = by_owner(owners, world)
    sent = index.index_select(0, order)
    if at_most is not None:
        slot = _slots(owners.index_select(0, order), counts, at_most)
        wanted = index.new_zeros(world * at_most).scatter_(0, slot, sent)
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted, group=processes)
        found = gather(parts, asked)
        rows = torch.empty_like(found)
        dist.all_to_all_single(rows, found, group=processes)
        rows = rows.index_select(0, slot)
    else:
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts, group=processes)
        give, take = torch.stack((theirs, counts)).tolist()  # waits for the device
        asked = index.new_empty(sum(give))
        dist.all_to_all_single(asked, sent, give, take, group=processes)
        found = gather(parts, asked)
        rows = found.new_empty(len(index), found.shape[1])
        dist.all_to_all_single(rows, found, take, give, group=processes)
    back = torch.empty_like(rows)
    back.index_copy_(0, order, rows)
    widths = [part.shape[1] for part in parts]
    return list(torch.split(back.view(torch.uint8), widths, dim=1))


def _slots(owners: Tensor, counts: Tensor, at_most: int) -> Tensor:
    """Return the place of each row, sorted by owner, in messages of `at_most` rows."""
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(owners), device=owners.device) - starts.index_select(0, owners)
    return owners * at_most + place


def gather(parts: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return rows of all parts side by side, as the widest words [n, words] they can be cut into.

    torch gathers single bytes at a tenth of the speed.
    """
    widths = [part.shape[1] for part in parts]
    for size, word in _WORDS:
        if all(width % size == 0 for width in widths):
            parts = [part.view(word) for part in parts]
            break
    found = [part.index_select(0, index) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def copy_between(
    rows: Tensor, begins: Sequence[int], parts: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Return rows int64[n] of blocks on several devices of one process, uint8 of each part.

    `parts`: for each rank what it owns, uint8 [rows, width]; a layer begins at `begins` of it.
    Copies between the devices: for GPUs that cannot read each other.
    """
    world, device = len(parts), rows.device
    owners, index = owner_of(rows, world), index_at_owner(rows, world)
    out = [rows.new_empty(len(rows), part.shape[1], dtype=torch.uint8) for part in parts[0]]
    for rank, own in enumerate(parts):
        mine = (owners == rank).nonzero()[:, 0]
        there = (index.index_select(0, mine) + begins[rank]).to(own[0].device)
        found = gather(own, there).view(torch.uint8).to(device)
        pieces = torch.split(found, [part.shape[1] for part in own], dim=1)
        for target, piece in zip(out, pieces, strict=True):
            target.index_copy_(0, mine, piece)
    return out

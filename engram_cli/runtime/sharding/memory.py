"""Device memory of equal size on every rank, which the GPUs of a host read from each other.

One process enables peer access between its GPUs. Several processes use torch's symmetric memory,
whose allocations live until the last process has unmapped them: no rank can free rows that another
still reads. NVLink multicast is never used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.sharding.group import ShardGroup, raise_together


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMemory:
    """Bytes of each rank. `own`: those of `group.ranks`, uint8 [size] each.

    `every`: those of all ranks as this process reads them, empty where it cannot: then rows are
    exchanged.
    """

    group: ShardGroup
    own: tuple[Tensor, ...]
    every: tuple[Tensor, ...] = ()
    handle: Any = field(default=None, repr=False)  # keeps the peers' memory mapped


def allocate(group: ShardGroup, size: int) -> PeerMemory:
    """Allocate `size` bytes for each rank. Collective; raises InputError where memory is refused.

    The `group` of the result says whether peers can be read after all.
    """
    if group.processes is None:
        own = tuple(_empty(size, device) for device in group.devices)
        readable = group.reads_peers and _read_once(own)
        return PeerMemory(group=group, own=own, every=own if readable else ())
    if group.reads_peers != all(_gather(group, group.reads_peers)):
        group = replace(group, reads_peers=False, reason="another GPU cannot read its peers")
    if group.reads_peers:
        shared = _symmetric(group, size)
        if not isinstance(shared, str):
            return shared
        group = replace(group, reads_peers=False, reason=shared)
    with raise_together(group):
        own = (_empty(size, group.devices[0]),)
    return PeerMemory(group=group, own=own)


def _symmetric(group: ShardGroup, size: int) -> PeerMemory | str:
    """Return symmetric memory, or why there is none: the same on all ranks."""
    # A program that uses multicast can disturb other users of the host; nothing here needs it.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    block: Tensor | None = None
    failure = ""
    try:
        from torch.distributed import _symmetric_memory as symmetric

        torch.cuda.empty_cache()  # what torch holds unused is no use to other allocators
        block = symmetric.empty(size, dtype=torch.uint8, device=group.devices[0])
    except (ImportError, AttributeError, RuntimeError) as error:
        failure = str(error).splitlines()[0]
    if failed := next(filter(None, _gather(group, failure)), ""):
        return failed
    assert block is not None
    handle: Any = None
    every: tuple[Tensor, ...] = ()
    try:
        handle = symmetric.rendezvous(block, group.processes)
        every = tuple(handle.get_buffer(k, (size,), torch.uint8) for k in range(group.world))
    except (AttributeError, RuntimeError, TypeError) as error:
        failure = str(error).splitlines()[0] or type(error).__name__
    if failed := next(filter(None, _gather(group, failure)), ""):
        return failed
    return PeerMemory(group=group, own=(block,), every=every, handle=handle)


def _gather(group: ShardGroup, value: Any) -> list[Any]:
    """Return a small value of each rank."""
    every: list[Any] = [None] * group.world
    dist.all_gather_object(every, value, group=group.processes)
    return every


def _empty(size: int, device: torch.device) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        raise InputError(
            f"{size:,} bytes of {device} for rows: {str(error).splitlines()[0]}",
            "give a budget (hbm=SIZE,shard), or more GPUs",
        ) from None


def _read_once(blocks: Sequence[Tensor]) -> bool:
    """Copy a byte between all pairs of GPUs: torch enables peer access at the first copy."""
    for block in blocks:
        for other in blocks:
            if block.device != other.device:
                other[:1].to(block.device)
    return True

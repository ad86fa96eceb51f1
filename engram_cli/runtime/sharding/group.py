"""Finds the GPUs over which the rows of a memory are distributed.

One process with several GPUs distributes over these. Where torch.distributed is initialised with
several processes, one for each GPU, the processes of one host share the rows, and every host has
all of them: a look-up never leaves its host.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engram_cli.errors import EngramError, InputError
from engram_cli.runtime.tiers import with_index

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardGroup:
    """The `world` ranks of a distribution of rows; `devices` are those that this process fills.

    With `processes`, a process group, this process is `rank` and fills one device. Otherwise it
    fills all ranks, in the order of `devices`, and the ranks of its readers are those of their
    devices. `reads_peers`: a GPU can read the memory of the others; if not, `reason` says why.
    """

    world: int
    devices: tuple[torch.device, ...]
    rank: int = 0
    processes: Any = None
    reads_peers: bool = True
    reason: str = ""

    @property
    def ranks(self) -> range:
        """Return the ranks whose rows this process holds."""
        return range(self.world) if self.processes is None else range(self.rank, self.rank + 1)

    def rank_of(self, device: torch.device) -> int:
        """Return the rank whose rows are on `device`, -1 where none are."""
        if self.processes is not None:
            return self.rank
        return self.devices.index(device) if device in self.devices else -1

    def device_of(self, rank: int) -> torch.device:
        """Return the device of one of the `ranks`."""
        return self.devices[0 if self.processes is not None else rank]


def find_group(asked: int | None, homes: Collection[torch.device]) -> ShardGroup:
    """Return the group for a memory whose layers run on `homes`, over `asked` GPUs, or all.

    With several processes this is collective: all processes of the default group call it. Raises
    InputError where there are not so many GPUs, or they cannot be divided.
    """
    devices = list(dict.fromkeys(with_index(device) for device in homes))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _of_processes(asked, devices)
    return _of_devices(asked, devices)


def _of_devices(asked: int | None, homes: list[torch.device]) -> ShardGroup:
    if homes[0].type != "cuda":
        if asked is None or asked < 2:
            raise InputError(
                "placement shard: there is no GPU, and no other process of torch.distributed",
                "give placement=hbm; or shard=2 to try it in the memory of this process",
            )
        return ShardGroup(world=asked, devices=(torch.device("cpu"),) * asked)
    there = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    every = homes + [device for device in there if device not in homes]
    world = len(every) if asked is None else asked
    if not 2 <= world <= len(every) or world < len(homes):
        raise InputError(
            f"placement shard over {world} GPUs: this process has {len(every)}, and runs layers "
            f"on {len(homes)} of them",
            "give placement=hbm for one GPU, or start one process for each GPU with torchrun",
        )
    chosen = tuple(every[:world])
    apart = [
        f"{home} cannot read the memory of {other}"
        for home in homes
        for other in chosen
        if home != other and not torch.cuda.can_device_access_peer(home, other)
    ]
    return ShardGroup(
        world=world, devices=chosen, reads_peers=not apart, reason=apart[0] if apart else ""
    )


def _of_processes(asked: int | None, homes: list[torch.device]) -> ShardGroup:
    mine = (_host(), [str(device) for device in homes], _uuid(homes[0]))
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    # Everything is checked from what all processes know: all of them raise, or none does.
    for rank, (_, devices, _) in enumerate(every):
        if len(devices) != 1:
            raise InputError(
                f"placement shard: the layers of process {rank} are on {', '.join(devices)}",
                "with torch.distributed, keep the layers of each process on one GPU",
            )
    rank, found = dist.get_rank(), None
    for members in split_by_host([host for host, _, _ in every], asked):
        processes = dist.new_group(members)  # every process makes every group
        if rank in members:
            found = members, processes
    assert found is not None
    members, processes = found
    reason = _apart(homes[0], [every[other][2] for other in members])
    return ShardGroup(
        world=len(members),
        devices=(homes[0],),
        rank=members.index(rank),
        processes=processes,
        reads_peers=not reason,
        reason=reason,
    )


def wait_for_all(group: ShardGroup) -> None:
    """Wait until all ranks have filled their rows; nobody may read them before."""
    for device in group.devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if group.processes is not None:
        dist.barrier(group=group.processes)


@contextmanager
def raise_together(group: ShardGroup) -> Iterator[None]:
    """Run a block on all ranks of a group; where it fails on one, all raise EngramError.

    Otherwise those where it succeeds would wait for the others at the next collective.
    """
    error: EngramError | None = None
    try:
        yield
    except EngramError as caught:
        error = caught
    if group.processes is not None:
        told = None if error is None else (error.message, error.hint)
        every: list[Any] = [None] * group.world
        dist.all_gather_object(every, told, group=group.processes)
        failed = [(rank, found) for rank, found in enumerate(every) if found is not None]
        if error is None and failed:
            rank, (message, hint) = failed[0]
            raise InputError(f"rank {rank} of the rows: {message}", hint)
    if error is not None:
        raise error


def split_by_host(hosts: Sequence[str], asked: int | None) -> list[list[int]]:
    """Return groups of ranks that share rows: all of one host, or `asked` neighbours of it.

    Every group has its own copy of all rows. Raises InputError where a host's processes cannot be
    divided.
    """
    groups: list[list[int]] = []
    for host in dict.fromkeys(hosts):
        ranks = [rank for rank, own in enumerate(hosts) if own == host]
        size = len(ranks) if asked is None else asked
        if size < 2 or len(ranks) % size:
            number = "" if asked is None else f"={asked}"
            many = f"{len(ranks)} process{'es' * (len(ranks) > 1)}"
            raise InputError(
                f"placement shard{number}: a host has {many}",
                "give a number of GPUs that divides those of each host, or placement=hbm",
            )
        groups += [ranks[begin : begin + size] for begin in range(0, len(ranks), size)]
    return groups


def _host() -> str:
    """Return what tells hosts apart; containers of one host count as one only with one name."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    return os.environ.get("ENGRAM_SHARD_HOST") or f"{socket.gethostname()} {boot}"


def _uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def _apart(home: torch.device, uuids: Sequence[str]) -> str:
    """Return why a GPU cannot read the memory of these GPUs, "" where it can."""
    if home.type != "cuda":
        return "the rows are on the CPU"
    if len(set(uuids)) < len(uuids):
        return "two processes use the same GPU"
    visible = {_uuid(torch.device("cuda", i)): i for i in range(torch.cuda.device_count())}
    for uuid in uuids:
        index = visible.get(uuid)  # a hidden one is tried when memory is shared
        own = index == home.index
        if index is not None and not own and not torch.cuda.can_device_access_peer(home, index):
            return f"{home} cannot read the memory of cuda:{index}"
    return ""

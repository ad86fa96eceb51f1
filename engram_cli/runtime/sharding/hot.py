"""Hot records of layers, distributed over GPUs where other rows are on the host or on disk.

The hot rows of a layer are a table of their own, in the order of their numbers: its row k belongs
to rank k % world (`owners`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.sharding.group import ShardGroup
from engram_cli.runtime.sharding.memory import PeerMemory, allocate
from engram_cli.runtime.sharding.owners import count_at


@dataclass(frozen=True, slots=True, kw_only=True)
class HotBlocks:
    """The hot records of a layer, uint8 [n, record_bytes] of each rank, as a device reads them.

    `rank`: of the device; `here` int64[1] on it counts the hot rows that it had itself.
    """

    blocks: tuple[Tensor, ...]
    rank: int
    here: Tensor
    memory: PeerMemory  # whose tensors `blocks` are

    @property
    def addresses(self) -> tuple[int, ...]:
        """Return the address of each block."""
        return tuple(block.data_ptr() for block in self.blocks)

    def pick(self, ranks: Tensor) -> Tensor:
        """Return the records of hot rows int64[n] by their place in the order, in plain torch."""
        world = len(self.blocks)
        found = self.blocks[0].new_empty(len(ranks), self.blocks[0].shape[1], device=ranks.device)
        for rank, block in enumerate(self.blocks):
            own = (ranks % world == rank).nonzero()[:, 0]
            there = (ranks[own] // world).to(block.device)
            found[own] = block.index_select(0, there).to(ranks.device)
        self.here.add_((ranks % world == self.rank).sum())
        return found


class HotMemory:
    """Memory for the hot records of all layers; `counts`: how many each layer has."""

    def __init__(self, group: ShardGroup, counts: Mapping[int, int], record_bytes: int) -> None:
        """Allocate; collective. Raises InputError where GPUs cannot read each other."""
        world, begin = group.world, 0
        self._cuts: dict[int, slice] = {}
        for layer, count in counts.items():
            most = count_at(count, 0, world)
            self._cuts[layer] = slice(begin, begin + most)
            begin += most
        self.memory = allocate(group, max(1, begin) * record_bytes)
        self.group, self.record_bytes = self.memory.group, record_bytes
        if not self.memory.every:
            raise InputError(
                f"hbm=SIZE,shard needs GPUs that read each other's memory: {self.group.reason}",
                "leave shard out: each GPU then has the hottest rows that its budget holds",
            )

    def own(self, layer: int, rank: int) -> Tensor:
        """Return the records of a rank that this process fills, uint8 [n, record_bytes]."""
        return self._cut(self.memory.own[rank - self.group.ranks.start], layer)

    def of(self, layer: int, device: torch.device) -> HotBlocks:
        """Return the hot records of a layer as `device` reads them."""
        return HotBlocks(
            blocks=tuple(self._cut(block, layer) for block in self.memory.every),
            rank=self.group.rank_of(device),
            here=torch.zeros(1, dtype=torch.int64, device=device),
            memory=self.memory,
        )

    def _cut(self, block: Tensor, layer: int) -> Tensor:
        return block.view(-1, self.record_bytes)[self._cuts[layer]]

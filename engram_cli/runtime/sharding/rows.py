"""The rows of a memory distributed over GPUs, and the modules that the model calls.

Where a GPU can read its peers, a look-up is one launch: hash, owner, load over NVLink, dequantise,
write. Elsewhere row numbers and rows are exchanged (`exchange`). Rows are only read, so that no
look-up waits for another rank; an exchange needs all ranks to call together.

For torch.compile the look-up is one operator that finds its rows by a number, as that of the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime import ops
from engram_cli.runtime.graph_capture import is_capturing_graph
from engram_cli.runtime.sharding import registry
from engram_cli.runtime.sharding.blocks import BlockLayout, keeps_scales_here
from engram_cli.runtime.sharding.exchange import copy_between, exchange_rows
from engram_cli.runtime.sharding.group import ShardGroup
from engram_cli.runtime.sharding.memory import allocate
from engram_cli.runtime.sharding.owners import index_at_owner, owner_of
from engram_cli.runtime.tables import DECODED, Table, dequantise
from engram_cli.runtime.tiers import with_index
from engram_cli.runtime.tiers.hot_set import HotSet
from engram_cli.runtime.tiers.operator import OperatorRows, register

if TYPE_CHECKING:
    from engram_cli.runtime.kernels.lookup_launcher import Hash, Plan, Shards
    from engram_cli.runtime.lookup_reference import LookBack

COUNTERS = 64  # as in kernels.places, which needs Triton
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What a reading GPU has of its own, for each layer.

    `scales`: of all rows, or one of the layer, where rows are stored without. `rows`, `row_scales`
    [H, ...]: the hot rows of `sets`, None where there are none. `counted` int64[COUNTERS, 8].
    `firsts` int64[L, world]: how many rows each rank has of earlier layers.
    """

    counted: Tensor
    firsts: Tensor
    scales: tuple[Tensor, ...] | None = None
    rows: tuple[Tensor, ...] | None = None
    row_scales: tuple[Tensor, ...] | None = None
    sets: tuple[HotSet, ...] | None = None


class Arguments(NamedTuple):
    """What kernels on a device are told: its own rows and scales, and where the others are."""

    shards: Shards
    own: list[Tensor]
    scales: list[Tensor]


class ShardedTables:
    """The rows of all layers, distributed over the ranks of a group.

    `dtype`: what quantised rows become; floats keep theirs. Made empty: `fill` is the caller's, by
    `held` and `copies`. `plan` forces the block sizes of the kernel, for measuring.
    """

    def __init__(
        self,
        spec: BundleSpec,
        group: ShardGroup,
        readers: Sequence[torch.device],
        *,
        dtype: torch.dtype | None = None,
        scales_here: bool | None = None,
    ) -> None:
        """Allocate; collective. `readers`: the devices on which rows are looked up."""
        row_type = spec.row_type
        if scales_here is None:
            scales_here = keeps_scales_here(spec, group.world)
        heights = tuple(spec.rows(layer) for layer in spec.layers)
        self.spec = spec
        self.blocks = BlockLayout(spec, heights, group.world, scales_here)
        self.memory = allocate(group, self.blocks.size)
        self.group = self.memory.group
        self.width = spec.dim
        example = self.blocks.typed(self.blocks.parts(self.memory.own[0])[0][:1], 0)
        self.dtype = example.dtype if not row_type.quantised else dtype or torch.float32
        scaling = row_type.scaling
        blocks_fit = scaling is None or not scaling.block or spec.dim % scaling.block == 0
        self.kind = row_type.kernel if row_type.kernel and blocks_fit else DECODED
        self.plan: Plan | None = None
        self.copies: dict[torch.device, Copies] = {}
        for device in map(with_index, readers):
            firsts = [
                [self.blocks.first(rank, place) for rank in range(group.world)]
                for place in range(len(heights))
            ]
            self.copies[device] = Copies(
                counted=torch.zeros(COUNTERS, 8, dtype=torch.int64, device=device),
                firsts=torch.tensor(firsts, device=device),
            )
        self._arguments: dict[tuple[torch.device, int | None], Arguments] = {}
        self.holders = len(spec.layers)
        self.number = registry.register(self)

    @property
    def one_launch(self) -> bool:
        """Whether hash and rows are one launch on a GPU."""
        return bool(self.memory.every) and self.kind != DECODED

    def held(self, rank: int, place: int, part: int) -> Tensor:
        """Return the rows (part 0) or scales (1) of a layer that this process fills: a view."""
        return self.blocks.held(self.memory.own[rank - self.group.ranks.start], rank, place, part)

    def look_up(self, hashed: Hash, ids: Tensor, back: LookBack) -> Tensor:
        """Return the vectors [L, *ids.shape, C x dim] of raw token ids, by kernels."""
        from engram_cli.runtime.kernels import lookup_launcher

        self.check_open()
        device, layers = with_index(ids.device), len(self.blocks.heights)
        if self.one_launch:
            told = self.arguments(device, None)
            return lookup_launcher.look_up(
                hashed,
                ids,
                told.own,
                told.scales,
                back,
                self.dtype,
                kind=self.kind,
                plan=self.plan,
                shards=told.shards,
            )
        rows = lookup_launcher.find_rows(hashed, ids, back)
        found = [self.read(place, rows[place]) for place in range(layers)]
        return torch.stack(found)

    def read(self, place: int, rows: Tensor) -> Tensor:
        """Return the vectors [..., C x dim] of rows int64[..., C] of the layer at `place`.

        With an exchange all ranks call together. Raises RuntimeAttachError after `close`.
        """
        self.check_open()
        device, flat = with_index(rows.device), rows.reshape(-1).contiguous()
        shape = (*rows.shape[:-1], rows.shape[-1] * self.width)
        if self.one_launch and ops.has_kernels(device):
            from engram_cli.runtime.kernels import shards

            told = self.arguments(device, place)
            scale = told.scales[0] if told.scales else None
            out = torch.empty(len(flat), self.width, dtype=self.dtype, device=device)
            shards.read(told.shards, flat, told.own[0], scale, out, self.kind)
            return out.view(shape)
        table = self._gathered(place, flat)
        every = torch.arange(len(flat), device=device)
        if self.kind == DECODED or not ops.has_kernels(device):
            return dequantise(table, every, self.dtype).view(shape)
        from engram_cli.runtime.kernels import shards

        out = torch.empty(len(flat), self.width, dtype=self.dtype, device=device)
        shards.read(shards.alone(table.values), every, table.values, table.scales, out, self.kind)
        return out.view(shape)

    def _gathered(self, place: int, rows: Tensor) -> Table:
        """Return rows int64[n] as a table of n rows on their device."""
        device, row_type = with_index(rows.device), self.spec.row_type
        copies = self.copies[device]
        here = owner_of(rows, self.group.world) == self.group.rank_of(device)
        if copies.sets is None or copies.rows is None or is_capturing_graph():
            values, *rest = self._stored(place, rows)
        else:
            ranks = copies.sets[place].rank(rows)
            here |= ranks >= 0
            values, *rest = self._with_hot(place, rows, ranks)
        copies.counted[0, 0] += len(rows)
        copies.counted[0, 1] += here.sum()
        scales = None
        if rest:
            scales = self.blocks.typed(rest[0].contiguous(), 1)
        elif copies.scales is not None:
            scales = copies.scales[place]
            scales = scales if row_type.of_layer else scales.index_select(0, rows)
        if row_type.scaling is not None and row_type.scaling.per == "row" and scales is not None:
            scales = scales.reshape(-1)
        return Table(
            values=self.blocks.typed(values.contiguous(), 0),
            scales=scales,
            dim=self.spec.dim if row_type.items.packed else None,
            row_type=row_type,
        )

    def _with_hot(self, place: int, rows: Tensor, ranks: Tensor) -> list[Tensor]:
        """Return what `_stored` does, hot rows of these ranks from this device's copies."""
        copies, is_cold = self.copies[with_index(rows.device)], ranks < 0
        hot, cold = (~is_cold).nonzero()[:, 0], is_cold.nonzero()[:, 0]
        found = self._stored(place, rows[cold])
        whole = [part.new_empty(len(rows), part.shape[1]) for part in found]
        for out, part, copied in zip(whole, found, (copies.rows, copies.row_scales), strict=False):
            assert copied is not None
            out[cold] = part
            out[hot] = copied[place].view(torch.uint8).view(-1, out.shape[1])[ranks[hot]]
        return whole

    def _stored(self, place: int, rows: Tensor) -> list[Tensor]:
        """Return rows int64[n] of a layer as stored, uint8 [n, width] of each part of a block."""
        world, every = self.group.world, self.memory.every
        copies = self.copies[with_index(rows.device)]
        firsts = [self.blocks.first(rank, place) for rank in range(world)]
        if every and ops.has_kernels(rows.device):
            return [self._copied(place, rows, part) for part in range(len(self.blocks.widths))]
        if every or self.group.processes is None:
            if rows.is_cuda and is_capturing_graph():
                raise RuntimeAttachError(
                    f"rows cannot be copied between GPUs in a CUDA graph ({self.group.reason})",
                    "run without CUDA graphs, or start one process for each GPU",
                )
            blocks = every or self.memory.own
            return copy_between(rows, firsts, [self.blocks.parts(block) for block in blocks])
        owners = owner_of(rows, world)
        index = index_at_owner(rows, world) + copies.firsts[place].index_select(0, owners)
        own = self.blocks.parts(self.memory.own[0])
        at_most = len(rows) if is_capturing_graph() else None  # all ranks capture the same shapes
        return exchange_rows(owners, index, own, self.group.processes, at_most)

    def _copied(self, place: int, rows: Tensor, part: int) -> Tensor:
        """Return one part of rows by a kernel that does not decode."""
        from engram_cli.runtime.kernels import shards

        width = self.blocks.widths[part]
        word = next(word for word in _WORDS if width % word.itemsize == 0)
        items = self.blocks.parts(self.memory.own[0])[part].view(word)
        out = torch.empty(len(rows), width // word.itemsize, dtype=word, device=rows.device)
        starts = self._addresses(place)[part * self.group.world :][: self.group.world]
        where = self.arguments(with_index(rows.device), place).shards._replace(
            addresses=starts, scales_here=True, hot=None, words=None, ranks=None, counted=None
        )
        shards.read(where, rows, items, None, out, "raw")
        return out.view(torch.uint8)

    def _addresses(self, place: int) -> tuple[int, ...]:
        starts = [block.data_ptr() for block in self.memory.every]
        return self.blocks.addresses(starts, place)

    def arguments(self, device: torch.device, place: int | None) -> Arguments:
        """Return what the kernels on a device are told, of all layers or of one; made once."""
        if (device, place) not in self._arguments:
            places = list(range(len(self.blocks.heights))) if place is None else [place]
            rank = max(0, self.group.rank_of(device) - self.group.ranks.start)
            block, copies = self.memory.own[rank], self.copies[device]
            own = [self.blocks.held(block, self.group.ranks[rank], i, 0) for i in places]
            scales: list[Tensor] = []
            if copies.scales is not None:
                scales = [copies.scales[i] for i in places]
            elif len(self.blocks.widths) > 1:
                scales = [self.blocks.held(block, self.group.ranks[rank], i, 1) for i in places]
            scaling = self.spec.row_type.scaling
            if scaling is not None and scaling.per == "row":
                scales = [each.reshape(-1) for each in scales]
            told = Arguments(shards=self._shards(device, places), own=own, scales=scales)
            self._arguments[device, place] = told
        return self._arguments[device, place]

    def _shards(self, device: torch.device, places: Sequence[int]) -> Shards:
        from engram_cli.runtime.kernels.lookup_launcher import Shards

        each = [self._addresses(i) for i in places]
        world, parts = self.group.world, len(self.blocks.widths)
        cuts = [slice(part * world, (part + 1) * world) for part in range(parts)]
        copies = self.copies[device]

        def pick(them: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if them is None else tuple(them[i] for i in places)

        sets = pick(copies.sets)
        return Shards(
            world=world,
            rank=self.group.rank_of(device),
            addresses=tuple(address for cut in cuts for own in each for address in own[cut]),
            scales_here=parts == 1,
            hot=pick(copies.rows),
            hot_scales=pick(copies.row_scales),
            words=None if sets is None else tuple(own.words for own in sets),
            ranks=None if sets is None else tuple(own.ranks for own in sets),
            counted=copies.counted,
        )

    def counted(self) -> tuple[int, int]:
        """Return the rows read and those of them on the GPU that read them; waits for it."""
        sums = [own.counted[:, :2].sum(0).cpu() for own in self.copies.values()]
        read, here = torch.stack(sums).sum(0).tolist()
        return read, here

    def lines(self) -> list[str]:
        """Describe how rows are read, one line for each rank that this process fills."""
        if self.memory.every:
            how = "over NVLink or PCIe" if self.memory.own[0].is_cuda else "in plain memory, no GPU"
        elif self.group.processes is None:
            how = f"by copies ({self.group.reason})"
        else:
            how = f"by exchange ({self.group.reason})"
        total = sum(self.blocks.heights)
        return [
            f"{self.group.device_of(rank)}: {self.blocks.first(rank, len(self.blocks.heights)):,} "
            f"of {total:,} rows, part {rank + 1} of {self.group.world}; the others are read {how}"
            for rank in self.group.ranks
        ]

    def check_open(self) -> None:
        """Raise RuntimeAttachError after `close`."""
        if not self.holders:
            raise RuntimeAttachError("the memory was detached", "attach it again")

    def close(self) -> None:
        """Free the rows when no copy of the model uses them any more; other ranks may read on."""
        self.holders -= 1
        if self.holders == 0:
            for device in self.copies:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            self._arguments.clear()
            self.copies.clear()
            del self.memory


class DistributedRows(OperatorRows):
    """A layer's rows, in place of `Rows` or `StoredRows`; `tables` holds those of all layers."""

    def __init__(
        self,
        tables: ShardedTables,
        place: int,
        device: torch.device,
        origin: tuple[Any, int] | None = None,
    ) -> None:
        super().__init__()
        self.tables, self.place = tables, place
        self.device = with_index(device)
        self.origin = origin
        self.width, self.dtype = tables.width, tables.dtype
        self.number = register(self)

    def vectors(self, rows: Tensor) -> Tensor:
        """Return what `forward` does. Raises RuntimeAttachError."""
        return self.tables.read(self.place, rows)

    def close(self) -> None:
        """Let go of the rows."""
        self.tables.close()

    def __deepcopy__(self, memo: object) -> DistributedRows:
        """Return the module itself: copies of a model share frozen rows."""
        self.tables.holders += 1
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise RuntimeAttachError(
            "distributed rows cannot be pickled", "save_engram(model, folder) writes a bundle"
        )

    def extra_repr(self) -> str:
        """Return what `print` shows of the module."""
        rows = self.tables.blocks.heights[self.place]
        return f"{rows}, {self.width}, {self.tables.spec.dtype}, over {self.tables.group.world}"


def tables_of(rows: Mapping[int, Any]) -> ShardedTables | None:
    """Return the tables of layers whose rows are distributed, None where they are not."""
    return next((own.tables for own in rows.values() if isinstance(own, DistributedRows)), None)

"""Rows that other processes own: asked for, sent back, and their gradients brought home.

Each process looks up rows of its own tokens. The distinct ones are sorted by owner, layer and row,
so that an owner gets every row once from each process. One exchange of counts says how much
follows, and is the only time that the host waits for the device; then row numbers go to the owners
and vectors come back. The backward pass sends each row's gradient the other way. What an owner
receives is in the order of the ranks, whichever arrived first, so that sums are the same every
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from engram_cli.runtime import ops
from engram_cli.runtime.row_gradients import sparse_tensor
from engram_cli.runtime.sharding.owners import count_at, index_at_owner, owner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The distinct rows of one call, as keys that sort by owner, then by layer and row.

    Of n looked-up rows: `keys` int[n] ascending, `order` int64[n] the places that they come from,
    `segments` int64[n] which of the distinct keys each is; `distinct` int[n] begins with the
    distinct keys; `counts` int64[world x L] how many of these go to each owner, by layer.
    """

    keys: Tensor
    order: Tensor
    segments: Tensor
    distinct: Tensor
    counts: Tensor

    @property
    def places(self) -> Tensor:
        """Return int64[n]: which of the distinct keys each looked-up row is."""
        places = torch.empty_like(self.segments)
        places[self.order] = self.segments
        return places


def sort_by_owner(rows: Tensor, height: int, world: int) -> Asked:
    """Return the distinct ones of rows int64[L, n]; no owner has `height` or more of a layer.

    Nothing waits for the device.
    """
    layers = rows.shape[0]
    layer = torch.arange(layers, device=rows.device)[:, None]
    keys = (owner_of(rows, world) * layers + layer) * height + index_at_owner(rows, world)
    keys = keys.reshape(-1)
    if world * layers * height < 2**31:  # half the digits to sort by
        keys = keys.to(torch.int32)
    keys, order = torch.sort(keys, stable=True)
    heads = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=heads[1:])
    before = torch.zeros(len(keys) + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(heads, 0, out=before[1:])
    segments = before[1:] - 1
    distinct = torch.empty_like(keys)
    distinct[segments] = keys
    begins = torch.arange(world * layers + 1, device=rows.device) * height
    counts = before[torch.searchsorted(keys, begins.to(keys.dtype))].diff()
    return Asked(keys=keys, order=order, segments=segments, distinct=distinct, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the rows of one call lie, as all processes have agreed.

    `asked` at other processes, `places` of its distinct rows, `shape` [L, ..., C] of what is looked
    up. `sent` [world] rows are asked of each owner, `received` [world][L] of this process by each:
    `indices` int[received] among the rows that it owns, by process, then by layer.
    """

    asked: Asked
    places: Tensor
    shape: torch.Size
    sent: list[int]
    received: list[list[int]]
    indices: Tensor

    def to_owners(self, values: Tensor) -> Tensor:
        """Return what is received for `indices`, of values [sent, dim] for the distinct rows."""
        return _swap(values, self.sent, list(map(sum, self.received)))

    def from_owners(self, values: Tensor) -> Tensor:
        """Return values [sent, dim] for the distinct rows, of those for `indices`."""
        return _swap(values, list(map(sum, self.received)), self.sent)

    def parts(self) -> list[tuple[int, slice]]:
        """Return the layer and the lines of each part of `indices`."""
        found, begin = [], 0
        if len(self.received[0]) == 1:
            return [(0, slice(0, len(self.indices)))]
        for counts in self.received:
            for layer, count in enumerate(counts):
                if count:
                    found.append((layer, slice(begin, begin + count)))
                begin += count
        return found


def agree_route(rows: Tensor, heights: Sequence[int]) -> Route:
    """Return the route of rows int64[L, ..., C], of tables with `heights` rows in all.

    Every process of the default group must call it. Waits for the device once.
    """
    world, layers = dist.get_world_size(), len(heights)
    height = count_at(max(heights), 0, world)
    asked = sort_by_owner(rows.flatten(1), height, world)
    theirs = torch.empty_like(asked.counts)
    dist.all_to_all_single(theirs, asked.counts)
    places = asked.places  # launched before the host waits
    counts = torch.stack((asked.counts, theirs)).view(2, world, layers).tolist()
    sent, received = list(map(sum, counts[0])), counts[1]
    distinct = asked.distinct[: sum(sent), None]
    indices = _swap(distinct, sent, list(map(sum, received)))[:, 0] % height
    return Route(
        asked=asked,
        places=places,
        shape=rows.shape,
        sent=sent,
        received=received,
        indices=indices,
    )


def _swap(values: Tensor, given: list[int], taken: list[int]) -> Tensor:
    """Return the lines of all processes for this one, in their order, for `values` [n, ...].

    `given` and `taken`: how many lines go to each process, and come from it.
    """
    found = values.new_empty((sum(taken), *values.shape[1:]))
    # gloo has no bfloat16 in every version of torch; bytes are the same everywhere.
    dist.all_to_all_single(found.view(torch.uint8), values.view(torch.uint8), taken, given)
    return found


class _Vectors(torch.autograd.Function):
    """Looks up rows at their owners, and gives each owner the mean gradient of its rows."""

    @staticmethod
    def forward(ctx: Any, route: Route, *weights: Tensor) -> Tensor:
        ctx.route, ctx.shapes = route, [weight.shape for weight in weights]
        held = weights[0].new_empty((len(route.indices), weights[0].shape[1]))
        for layer, part in route.parts():
            torch.index_select(weights[layer], 0, route.indices[part], out=held[part])
        found = route.from_owners(held).index_select(0, route.places)
        return found.view(*route.shape[:-1], route.shape[-1] * held.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        route: Route = ctx.route
        dim = ctx.shapes[0][1]
        asked, total = route.asked, sum(route.sent)
        values = gradient.reshape(-1, dim)
        sums = ops.sum_sorted(values, asked.keys, asked.order, asked.segments, total)
        arrived = route.to_owners(sums.to(gradient.dtype))
        arrived /= dist.get_world_size()
        parts = route.parts()
        found: list[Tensor | None] = [None]
        for layer, shape in enumerate(ctx.shapes):
            own = [part for other, part in parts if other == layer] or [slice(0, 0)]
            rows, values = _joined(route.indices, own).long(), _joined(arrived, own)
            found.append(sparse_tensor(rows, values, shape))
        return tuple(found)


def _joined(lines: Tensor, parts: list[slice]) -> Tensor:
    """Return parts of `lines`, one after another."""
    return lines[parts[0]] if len(parts) == 1 else torch.cat([lines[part] for part in parts])


def vectors(weights: Sequence[Tensor], rows: Tensor, heights: Sequence[int]) -> Tensor:
    """Return [L, ..., C x dim] of rows int64[L, ..., C], whose owners are all processes.

    `weights`: the rows [owned, dim] of each layer that this process owns, of `heights` in all. The
    gradients are sparse and those of the mean of all processes' losses. Every process of the
    default group must call it, and its backward pass, equally often.
    """
    found: Tensor = _Vectors.apply(agree_route(rows, heights), *weights)  # type: ignore[no-untyped-call]
    return found

"""Writes tables that are distributed over processes: the first one writes, the others give rows.

The writer asks for a block of rows at a time, so that memory does not grow with the table. The
others answer until it is done, or has failed: then all of them raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from engram_cli.errors import OutputError
from engram_cli.runtime.sharding.owners import count_at

Blocks = Iterator[tuple[int, Tensor]]

_BLOCK_BYTES = 64 * 2**20
_DONE, _FAILED = -1, -2


@dataclass(frozen=True, slots=True)
class Part:
    """The rows `own` [owned, ...] of this process, of a tensor with `height` rows."""

    own: Tensor
    height: int


def write_together(parts: Sequence[Part], write: Callable[[Callable[[int], Blocks]], None]) -> None:
    """Have the first process of the default group call `write(blocks)`; every process calls this.

    `blocks(i)` yields the rows of the whole `parts[i]` on the CPU, ascending: (first row,
    [n, ...]). The parts are the same tensors in every process. What `write` raises is raised in the
    first process, OutputError in the others.
    """
    if not parts:
        raise ValueError("no parts to write")
    if dist.get_rank():
        _serve(parts)
        return
    try:
        write(lambda number: _blocks(parts, number))
    except BaseException:
        _say(parts, _FAILED)
        raise
    _say(parts, _DONE)


def _blocks(parts: Sequence[Part], number: int) -> Blocks:
    part, world = parts[number], dist.get_world_size()
    row_bytes = max(part.own[:0].new_empty(part.own.shape[1:]).nbytes, 1)
    step = max(_BLOCK_BYTES // row_bytes // world, 1) * world
    for first in range(0, part.height, step):
        last = min(first + step, part.height)
        _say(parts, number, first, last)
        yield first, _gathered(part, first, last)


def _say(parts: Sequence[Part], *said: int) -> None:
    """Tell the other processes which rows are needed, or that none are."""
    message = torch.tensor([*said, 0, 0][:3], dtype=torch.int64, device=parts[0].own.device)
    dist.broadcast(message, 0)


def _serve(parts: Sequence[Part]) -> None:
    """Give the first process what it asks for. Raises OutputError where it failed."""
    while True:
        message = torch.empty(3, dtype=torch.int64, device=parts[0].own.device)
        dist.broadcast(message, 0)
        number, first, last = message.tolist()
        if number == _DONE:
            return
        if number == _FAILED:
            raise OutputError(
                "the first process could not write what was gathered", "its message says why"
            )
        _gathered(parts[number], first, last)


def _gathered(part: Part, first: int, last: int) -> Tensor:
    """Return rows first..last - 1 of a part in the first process; every process calls it.

    `first` is a row of the first process.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    begin, end = (count_at(row, rank, world) for row in (first, last))
    own = part.own[begin:end]
    longest = count_at(last - first, 0, world)
    padded = own.new_zeros((longest, *own.shape[1:]))
    padded[: len(own)] = own
    # Bytes, as gloo does not have every dtype.
    given = padded.view(longest, -1).view(torch.uint8)
    if rank:
        dist.gather(given, None, 0)
        return padded
    taken = [torch.empty_like(given) for _ in range(world)]
    dist.gather(given, taken, 0)
    whole = torch.stack(taken, dim=1).view(longest * world, -1)[: last - first].cpu()
    return whole.view(own.dtype).view(last - first, *own.shape[1:])

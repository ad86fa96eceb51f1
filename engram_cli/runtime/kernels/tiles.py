"""What all kernels need: how they are launched, and how work is cut into tiles.

The tiles are constants, so that results do not depend on the GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument, a tensor.

    Triton itself launches on the current device, which is another one in a model on several GPUs.
    """
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


class Tile(NamedTuple):
    """What a program computes at a time, and with how many warps; the tokens it computes in all, or
    into how many ranges all tokens are cut: each gives a partial sum of a weight's gradient."""

    tokens: int
    columns: int
    warps: int
    range: int = 0
    parts: int = 0

    def fit(self, width: int) -> Tile:
        """The same for rows that may be narrower."""
        return self._replace(columns=min(self.columns, power_of_two(width)))

    def cut(self, count: int) -> int:
        """Into how many ranges `count` tokens are cut."""
        return max(1, min(self.parts, parts_of(count, self.tokens)))


def row_plan(width: int, *, held: bool) -> tuple[int, int]:
    """The columns of a load and the warps of a program that reads a row of `width`.

    A row that is held to the end: about five loads a thread, of 16 bytes in bfloat16; otherwise
    twice as many, which is faster by a tenth on an H200.
    """
    wanted = power_of_two(parts_of(width, (5 if held else 10) * 256))
    warps = min(16, max(1, wanted))
    return min(256 * warps, power_of_two(width)), warps


def parts_of(count: int, size: int) -> int:
    """How many parts of `size` hold `count`; triton.cdiv takes 5 us of the host a call."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The least one that is not below `count`; triton.next_power_of_2 takes 5 us, too."""
    return 1 << max(0, count - 1).bit_length()

"""What all kernels need: launches, tiles, and the loads that they share.

Tiles are constants, so that results do not depend on the GPU. An argument that a call does not have
is None: Triton compiles a kernel for its absence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

_KEPT = 256  # launches of a kernel that are known


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument, a tensor.

    Triton itself launches on the current device, which is another one in a model on several GPUs.
    """
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


class Repeated:
    """Launches of one kernel that come again: Triton looks at all arguments the first time only.

    `kernel[grid](...)` inspects each argument to choose among the versions that it has compiled.
    What it returns is that version, which is launched as it is the next time.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: dict[Hashable, Callable[..., None]] = {}

    def find(self, key: Hashable) -> Callable[..., None] | None:
        """Return what launches again, of other tensors, as `launch` did under this key."""
        return self._known.get(key)

    def launch(
        self,
        key: Hashable,
        grid: tuple[int, ...],
        tensors: tuple[Any, ...],
        *numbers: Any,
        **constants: Any,
    ) -> None:
        """Launch as `launch` does; `find` has it then, unless `key` is None.

        `key` decides everything but the tensors, and what Triton chooses by of these: their device
        and dtype, and whether 16 divides their addresses.
        """
        with torch.cuda.device_of(tensors[0]):
            version = self._kernel[grid](*tensors, *numbers, **constants)
        if key is None or version is None:  # Triton's interpreter has no versions
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        names = self._kernel.arg_names[len(tensors) + len(numbers) :]
        rest = (*numbers, *(constants[name] for name in names))
        run = version[(*grid, 1, 1)[:3]]

        def again(*tensors: Any) -> None:
            with torch.cuda.device_of(tensors[0]):
                run(*tensors, *rest)

        self._known[key] = again


def seen(given: Any) -> Any:
    """Return all of an argument but its values and its device, for the key of a `Repeated`."""
    if isinstance(given, torch.Tensor):
        return given.dtype, given.shape, given.stride(), given.data_ptr() % 16
    return tuple(map(seen, given)) if isinstance(given, tuple) else given


class Tile(NamedTuple):
    """Says how many tokens and columns a program computes at a time, and with how many warps.

    `range`: the tokens it computes in all. Or `parts`: into how many ranges all tokens are cut;
    each range gives a partial sum of a weight's gradient.
    """

    tokens: int
    columns: int
    warps: int
    range: int = 0
    parts: int = 0

    def fit(self, width: int) -> Tile:
        """Return the same tile for rows that may be narrower."""
        return self._replace(columns=min(self.columns, power_of_two(width)))

    def cut(self, count: int) -> int:
        """Return into how many ranges `count` tokens are cut."""
        return max(1, min(self.parts, parts_of(count, self.tokens)))


def row_plan(width: int, *, held: bool) -> tuple[int, int]:
    """Return the columns of a load and the warps of a program that reads a row of `width`.

    A row that is held to the end: about five loads a thread, of 16 bytes in bfloat16; otherwise
    twice as many, which is faster by a tenth on an H200.
    """
    wanted = power_of_two(parts_of(width, (5 if held else 10) * 256))
    warps = min(16, max(1, wanted))
    return min(256 * warps, power_of_two(width)), warps


def parts_of(count: int, size: int) -> int:
    """Return how many parts of `size` hold `count`; triton.cdiv takes 5 us of the host a call."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """Return the least one not below `count`; triton.next_power_of_2 takes 5 us, too."""
    return 1 << max(0, count - 1).bit_length()


@triton.jit
def load(address, mask):
    """Load float32 numbers, 0 where masked."""
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def norm_weight(weight, at, inside, CENTRED: tl.constexpr):
    """Return the weight of a norm as it is multiplied with, [BLOCK]."""
    found = load(weight + at, inside)
    if CENTRED:
        found += 1.0
    return found


@triton.jit
def is_live(keep, token, here):
    """Return which tokens are not padding, [BLOCK]; `keep` is None where there is none."""
    live = here
    if keep is not None:
        live = here & (tl.load(keep + token, mask=here, other=0) != 0)
    return live


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return COUNT sums that start at 0, float32[BLOCK_T, BLOCK_D] each."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros([BLOCK_T, BLOCK_D], tl.float32),)
    return sums

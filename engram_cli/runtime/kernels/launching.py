"""Launching kernels: what Triton finds out anew at every call is found out once.

`kernel[grid](...)` looks at every argument, in microseconds each, to choose among the versions it
has compiled; most kernels here run for less time than that takes. A `Launcher` remembers what
Triton chose under a key that is cheaper to make, and launches it as `JITFunction.run` ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

# Versions whose JITFunction.run ends as `Launcher.__call__` does; others launch by Triton's own.
_KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")
_HAS_KNOWN_VERSION = ".".join(triton.__version__.split(".")[:2]) in _KNOWN_VERSIONS
_MOST = 512  # versions of a kernel that are remembered


class _Compiled(NamedTuple):
    """A compiled version of a kernel on one device, and its constants in the kernel's order."""

    run: Any
    function: Any
    metadata: Any
    constants: tuple[Any, ...]


class Launcher:
    """One kernel of `triton.jit`, to be called with a grid, its arguments, constants and options.

    `arguments` by place: tensors, the first of them on the device to launch on; tuples of tensors;
    integers, floats, bools, None. `constants` by name: all constexprs, and options such as
    num_warps. A grid of no programs launches nothing.
    """

    __slots__ = ("_kernel", "_plain", "_versions")

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._versions: dict[Any, _Compiled] = {}
        params = getattr(kernel, "params", ())  # an interpreted kernel has none
        self._plain = frozenset(p.num for p in params if p.do_not_specialize)

    def __call__(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch on the current stream of the device that the first argument lies on."""
        if 0 in grid:
            return
        device = arguments[0].get_device()
        if device < 0:  # in Triton's interpreter
            self._kernel[grid](*arguments, **constants)
        elif device == torch._C._cuda_getDevice():
            self._launch(device, grid, arguments, constants)
        else:
            with torch.cuda.device(device):
                self._launch(device, grid, arguments, constants)

    def _launch(
        self, device: int, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: Any
    ) -> None:
        runtime = triton.knobs.runtime
        if not _HAS_KNOWN_VERSION or _is_watched(runtime) or self._kernel.pre_run_hooks:
            self._kernel[grid](*arguments, **constants)
            return
        values = tuple(constants.values())
        # 1, 1.0 and True are equal, but not the same constant.
        key: list[Any] = [device, runtime.debug, *constants, *values, *map(type, values)]
        given = describe(arguments, self._plain, key)
        version = self._versions.get(known := tuple(key))
        if version is None:
            self._remember(known, self._kernel[grid](*arguments, **constants), arguments, constants)
            return
        version.run(
            grid[0],
            grid[1] if len(grid) > 1 else 1,
            grid[2] if len(grid) > 2 else 1,
            torch._C._cuda_getCurrentRawStream(device),
            version.function,
            version.metadata,
            None,
            None,
            None,
            *given,
            *version.constants,
        )

    def _remember(
        self, key: Any, compiled: Any, arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Keep what Triton launched; `compiled` is None where a hook of Triton's stopped it."""
        if compiled is None:
            return
        if len(self._versions) >= _MOST:
            self._versions.clear()
        names = self._kernel.arg_names[len(arguments) :]
        ordered = tuple(constants[name] for name in names)
        self._versions[key] = _Compiled(
            compiled.run, compiled.function, compiled.packed_metadata, ordered
        )


def _is_watched(runtime: Any) -> bool:
    """Whether hooks of Triton's want to see every launch, or change what is compiled."""
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # chains of hooks, or one
        return True
    return getattr(runtime, "add_stages_inspection_hook", None) is not None


def describe(arguments: tuple[Any, ...], plain: frozenset[int], key: list[Any]) -> list[Any]:
    """Add to `key` all that Triton compiles for in `arguments`; the arguments as they are launched.

    A tensor counts by its dtype and whether 16 divides its address, an integer by its size and,
    unless its place is in `plain`, by whether it is 1 and whether 16 divides it. Tensors on a GPU
    are launched as their addresses: the launcher would ask the driver about each.
    """
    given = []
    for place, value in enumerate(arguments):
        kind = type(value)
        if kind is int:
            size = 32 if -(2**31) <= value < 2**31 else 64 if value < 2**63 else 65
            if place not in plain:
                size = 1 if value == 1 else (-size if value % 16 == 0 else size)
            key.append(size)
            given.append(value)
        elif kind is float or kind is bool or value is None:
            key.append(kind)
            given.append(value)
        elif kind is tuple:
            key.append(len(value))
            given.append(tuple(describe(value, plain, key)))
        else:
            address = value.data_ptr()
            key.append(value.dtype)
            key.append(address % 16 == 0)
            given.append(address if value.is_cuda else value)
    return given

"""Compiled kernels: Numba with explicit types, without the interpreter lock, cached on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from engram_cli.errors import DependencyError


def kernel(*signatures: str, cache: bool = True) -> Callable[[Any], Any]:
    """Compile for `signatures`, without the disk cache where no folder for it is writable.

    Raises DependencyError where Numba is told not to compile: the kernels use machine intrinsics,
    and in Python their unsigned arithmetic would not wrap.
    """
    settings: Any = config
    if settings.DISABLE_JIT:
        raise DependencyError("NUMBA_DISABLE_JIT is set, and kernels must be compiled", "unset it")

    def compile_kernel(function: Any) -> Any:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
        try:
            with _cache_folder():
                return njit(list(signatures) or None, cache=cache, **options)(function)
        except RuntimeError as error:  # "cannot cache function: no locator available"
            if "cache" not in str(error):
                raise
            return njit(list(signatures) or None, **options)(function)

    return compile_kernel


@contextmanager
def _cache_folder() -> Iterator[None]:
    """Keep compiled kernels in the user's cache, unless NUMBA_CACHE_DIR says where.

    Beside the sources they would outlive `pip uninstall`, and the folder they keep alive would
    shadow the next installation as an empty namespace package.
    """
    settings: Any = config
    given = settings.CACHE_DIR
    if not given:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(base, "engram-tables", "numba")
        with suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            settings.CACHE_DIR = folder
    try:
        yield
    finally:
        settings.CACHE_DIR = given


@intrinsic
def bits_of(typingctx: Any, value: Any) -> Any:
    """The bits of a float64 as an uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint64))

    return types.uint64(types.float64), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of `array[index]` (one-dimensional, contiguous) to be written to."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from llvmlite import ir

        view = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.bitcast(builder.gep(view.data, [args[1]]), cgutils.voidptr_t)
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        declare: Any = cgutils.get_or_insert_function
        hint = declare(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [address, i32(1), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen

"""Numba intrinsics for the gather threads: atomics, semaphores, and memory and calls by address.

Most take a word of an int64 array as `array, index`; the others take addresses, as int64. Nothing
is checked.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I32, _I64, _NOTHING = ir.IntType(32), ir.IntType(64), ir.VoidType()
_POINTER: Any = cgutils.voidptr_t
_ARRAY = None  # the type is that of the caller's array
_WORD = (_ARRAY, types.intp)


def _intrinsic(result: Any, *arguments: Any) -> Callable[[Any], Any]:
    """Make an intrinsic of a function that gets the LLVM builder and its arguments' values.

    `arguments` are Numba types. The function gets `_WORD` as one value, a pointer to the word.
    """

    def make(generate: Any) -> Any:
        def typed(typingctx: Any, *given: Any) -> Any:
            found = zip(given, arguments, strict=True)
            signature = result(*[own if of is _ARRAY else of for own, of in found])

            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                if arguments[:2] == _WORD:
                    view = context.make_array(signature.args[0])(context, builder, values[0])
                    values = [builder.gep(view.data, [values[1]]), *values[2:]]
                value = generate(builder, *values)
                return context.get_dummy_value() if result is types.void else value

            return signature, codegen

        # Numba asks for the signature, and would pass `given` as a tuple.
        names = ["typingctx", *(f"value{i}" for i in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        vars(typed)["__signature__"] = inspect.Signature(
            [inspect.Parameter(name, kind) for name in names]
        )
        typed.__name__ = typed.__qualname__ = generate.__name__
        return intrinsic(typed)

    return make


def _call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Call a C function or an LLVM intrinsic by its name."""
    kind = ir.FunctionType(result, [value.type for value in values])
    declare: Any = cgutils.get_or_insert_function
    return builder.call(declare(builder.module, kind, name), values)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _POINTER)


@_intrinsic(types.int64, *_WORD)
def atomic_load(builder: Any, word: Any) -> Any:
    """Return the word as the other threads left it."""
    return builder.load_atomic(word, "seq_cst", 8)


@_intrinsic(types.void, *_WORD, types.int64)
def atomic_store(builder: Any, word: Any, value: Any) -> None:
    """Write the word after all that this thread wrote before."""
    builder.store_atomic(value, word, "seq_cst", 8)


@_intrinsic(types.int64, *_WORD, types.int64)
def atomic_add(builder: Any, word: Any, value: Any) -> Any:
    """Add to the word; return its former value."""
    return builder.atomic_rmw("add", word, value, "seq_cst")


@_intrinsic(types.int64, *_WORD, types.int64)
def atomic_swap(builder: Any, word: Any, value: Any) -> Any:
    """Write the word; return its former value."""
    return builder.atomic_rmw("xchg", word, value, "seq_cst")


@_intrinsic(types.int32, *_WORD)
def sem_init(builder: Any, word: Any) -> Any:
    """Make the 32 bytes from the word on a semaphore of this process, at 0."""
    place = builder.bitcast(word, _POINTER)
    return _call(builder, "sem_init", _I32, place, _I32(0), _I32(0))


@_intrinsic(types.int32, *_WORD)
def sem_wait(builder: Any, word: Any) -> Any:
    """Sleep until the semaphore is posted; return not 0 where interrupted."""
    return _call(builder, "sem_wait", _I32, builder.bitcast(word, _POINTER))


@_intrinsic(types.int32, *_WORD)
def sem_post(builder: Any, word: Any) -> Any:
    """Wake one thread that sleeps, or will sleep, at the semaphore."""
    return _call(builder, "sem_post", _I32, builder.bitcast(word, _POINTER))


@_intrinsic(types.void)
def pause(builder: Any) -> None:
    """Tell the core that this thread only waits: some tens of nanoseconds."""
    if platform.machine() == "x86_64":
        _call(builder, "llvm.x86.sse2.pause", _NOTHING)
    elif platform.machine() == "aarch64":
        _call(builder, "llvm.aarch64.hint", _NOTHING, _I32(1))


@_intrinsic(types.int32)
def yield_core(builder: Any) -> Any:
    """Let another thread have this core, if one wants it."""
    return _call(builder, "sched_yield", _I32)


@_intrinsic(types.int64)
def nanoseconds(builder: Any) -> Any:
    """Return the monotonic clock."""
    numba: Any = cgutils
    time = numba.alloca_once(builder, ir.ArrayType(_I64, 2))
    _call(builder, "clock_gettime", _I32, _I32(1), builder.bitcast(time, _POINTER))
    seconds, rest = (builder.load(numba.gep_inbounds(builder, time, 0, i)) for i in range(2))
    return builder.add(builder.mul(seconds, _I64(1_000_000_000)), rest)


@_intrinsic(types.int64, types.int64)
def word_at(builder: Any, address: Any) -> Any:
    """Return the int64 at an address."""
    return builder.load(builder.inttoptr(address, _I64.as_pointer()))


@_intrinsic(types.int64, types.int64)
def half_word_at(builder: Any, address: Any) -> Any:
    """Return the int32 at an address, as int64."""
    return builder.sext(builder.load(builder.inttoptr(address, _I32.as_pointer())), _I64)


@_intrinsic(types.void, types.int64)
def prefetch_at(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, to be read once."""
    place = _pointer(builder, address)
    _call(builder, "llvm.prefetch.p0", _NOTHING, place, _I32(0), _I32(3), _I32(1))


@_intrinsic(types.void, types.int64, types.int64, types.int64)
def copy_bytes(builder: Any, target: Any, source: Any, count: Any) -> None:
    """Copy `count` bytes from one address to another."""
    copy: Any = cgutils.raw_memcpy
    copy(builder, _pointer(builder, target), _pointer(builder, source), count, 1)


@_intrinsic(types.voidptr, types.int64)
def pointer(builder: Any, address: Any) -> Any:
    """Return an address as a pointer."""
    return _pointer(builder, address)


def _driver_call(count: int) -> Any:
    """Make an intrinsic that calls the function at an address with `count` words."""

    def call_at(builder: Any, function: Any, *values: Any) -> Any:
        kind = ir.FunctionType(_I32, [_I64] * count)
        return builder.call(builder.inttoptr(function, kind.as_pointer()), values)

    return _intrinsic(types.int32, types.int64, *[types.int64] * count)(call_at)


copy_to_device = _driver_call(4)  # cuMemcpyHtoDAsync: target, source, size, stream
call_with_event = _driver_call(1)  # cuEventSynchronize: event
call_with_event_and_stream = _driver_call(2)  # cuEventRecord: event, stream

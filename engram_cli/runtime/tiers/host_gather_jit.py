"""Numba intrinsics for the threads: atomics, semaphores, calls and memory accesses by address."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD = ir.IntType(64)


@intrinsic
def atomic_load(typingctx: Any, array: Any, index: Any) -> Any:
    """`array[index]`, int64, as the other threads left it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, args), "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `array[index]`, int64, after all that this thread wrote before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        builder.store_atomic(args[2], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def atomic_add(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to `array[index]`, int64; what was there before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_swap(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `array[index]`, int64; what was there before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        return builder.atomic_rmw("xchg", place, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def sem_wait(typingctx: Any, array: Any, index: Any) -> Any:
    """Sleep until the POSIX semaphore at `array[index]` is posted; not 0 when interrupted."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _semaphore(context, builder, signature, args, "sem_wait")

    return types.int32(array, types.intp), codegen


@intrinsic
def sem_post(typingctx: Any, array: Any, index: Any) -> Any:
    """Wake one that sleeps, or will, at the semaphore at `array[index]`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _semaphore(context, builder, signature, args, "sem_post")

    return types.int32(array, types.intp), codegen


@intrinsic
def sem_init(typingctx: Any, array: Any, index: Any) -> Any:
    """Make a semaphore of this process, at 0, of the 32 bytes at `array[index]`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(i32, [cgutils.voidptr_t, i32, i32])
        declare: Any = cgutils.get_or_insert_function
        call = declare(builder.module, kind, "sem_init")
        place = _place(context, builder, signature, args)
        return builder.call(call, [builder.bitcast(place, cgutils.voidptr_t), i32(0), i32(0)])

    return types.int32(array, types.intp), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this thread only waits: some tens of nanoseconds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        declare: Any = cgutils.get_or_insert_function
        if platform.machine() == "x86_64":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(declare(builder.module, kind, "llvm.x86.sse2.pause"), [])
        elif platform.machine() == "aarch64":
            i32 = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [i32])
            builder.call(declare(builder.module, kind, "llvm.aarch64.hint"), [i32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typingctx: Any) -> Any:
    """Let another thread have this core, if one wants it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        declare: Any = cgutils.get_or_insert_function
        return builder.call(declare(builder.module, kind, "sched_yield"), [])

    return types.int32(), codegen


@intrinsic
def word_at(typingctx: Any, address: Any) -> Any:
    """The int64 at an address; nothing is checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _WORD.as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def prefetch_at(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to be read once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        declare: Any = cgutils.get_or_insert_function
        hint = declare(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [builder.inttoptr(args[0], cgutils.voidptr_t), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def half_word_at(typingctx: Any, address: Any) -> Any:
    """The int32 at an address, as int64; nothing is checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
        return builder.sext(builder.load(place), _WORD)

    return types.int64(types.int64), codegen


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` bytes from one address to another; nothing is checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(each, cgutils.voidptr_t) for each in args[:2])
        copy: Any = cgutils.raw_memcpy
        copy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def nanoseconds(typingctx: Any) -> Any:
    """The monotonic clock."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        numba: Any = cgutils
        time = numba.alloca_once(builder, ir.ArrayType(_WORD, 2))
        kind = ir.FunctionType(i32, [i32, cgutils.voidptr_t])
        declare: Any = cgutils.get_or_insert_function
        call = declare(builder.module, kind, "clock_gettime")
        builder.call(call, [i32(1), builder.bitcast(time, cgutils.voidptr_t)])
        seconds, rest = (
            builder.load(numba.gep_inbounds(builder, time, 0, index)) for index in range(2)
        )
        return builder.add(builder.mul(seconds, _WORD(1_000_000_000)), rest)

    return types.int64(), codegen


@intrinsic
def copy_to_device(
    typingctx: Any, function: Any, target: Any, source: Any, size: Any, stream: Any
) -> Any:
    """Call `function` as cuMemcpyHtoDAsync; its result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, args)

    return types.int32(*[types.int64] * 5), codegen


@intrinsic
def call_with_event(typingctx: Any, function: Any, event: Any) -> Any:
    """Call `function` as cuEventSynchronize; its result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, args)

    return types.int32(*[types.int64] * 2), codegen


@intrinsic
def call_with_event_and_stream(typingctx: Any, function: Any, event: Any, stream: Any) -> Any:
    """Call `function` as cuEventRecord; its result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, args)

    return types.int32(*[types.int64] * 3), codegen


def _call(builder: Any, args: Any) -> Any:
    """Call the function at the first address with the others, pointers and sizes alike."""
    kind = ir.FunctionType(ir.IntType(32), [_WORD] * (len(args) - 1))
    return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    view = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(view.data, [args[1]])


def _semaphore(context: Any, builder: Any, signature: Any, args: Any, name: str) -> Any:
    kind = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t])
    declare: Any = cgutils.get_or_insert_function
    place = _place(context, builder, signature, args)
    call = declare(builder.module, kind, name)
    return builder.call(call, [builder.bitcast(place, cgutils.voidptr_t)])

"""What kernels need beyond Numba: bit casts, prefetches, copies and advice by address."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def bits_of_float32(typingctx: Any, value: Any) -> Any:
    """The bits of a float32 as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


@intrinsic
def float32_of_bits(typingctx: Any, value: Any) -> Any:
    """The float32 whose bits are an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


@intrinsic
def add_in_any_order(typingctx: Any, a: Any, b: Any) -> Any:
    """The sum of two floats, one of many that may be summed in any order, so in vectors."""
    kind = types.float64 if types.float64 in (a, b) else types.float32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1], flags=["reassoc"])

    return kind(kind, kind), codegen


@intrinsic
def copy_from(typingctx: Any, target: Any, index: Any, address: Any, count: Any) -> Any:
    """Copy `count` bytes at an address to `target[index:]`, uint8; nothing is checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        source = builder.inttoptr(args[2], cgutils.voidptr_t)
        copy: Any = cgutils.raw_memcpy
        copy(builder, builder.gep(view.data, [args[1]]), source, args[3], 1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint64, types.intp), codegen


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

    return types.void(types.uint64), codegen


@intrinsic
def madvise(typingctx: Any, address: Any, length: Any, advice: Any) -> Any:
    """The system call on a page-aligned address; its result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, i64 = ir.IntType(32), ir.IntType(64)
        kind = ir.FunctionType(i32, [cgutils.voidptr_t, i64, i32])
        declare: Any = cgutils.get_or_insert_function
        call = declare(builder.module, kind, "madvise")
        return builder.call(call, [builder.inttoptr(args[0], cgutils.voidptr_t), args[1], args[2]])

    return types.int32(types.uint64, types.intp, types.int32), codegen


@intrinsic
def mincore(typingctx: Any, address: Any, length: Any, pages: Any) -> Any:
    """The system call on an aligned address: bit 0 of `pages` [uint8] says what is in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, i64 = ir.IntType(32), ir.IntType(64)
        view = context.make_array(signature.args[2])(context, builder, args[2])
        kind = ir.FunctionType(i32, [cgutils.voidptr_t, i64, cgutils.voidptr_t])
        declare: Any = cgutils.get_or_insert_function
        call = declare(builder.module, kind, "mincore")
        start = builder.inttoptr(args[0], cgutils.voidptr_t)
        return builder.call(call, [start, args[1], builder.bitcast(view.data, cgutils.voidptr_t)])

    return types.int32(types.uint64, types.intp, pages), codegen

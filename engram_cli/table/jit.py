"""Bit casts between float32 and int32, and a prefetch for reading, for kernels."""

from __future__ import annotations

from typing import Any

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
def prefetch_read(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of `array[index]` (one-dimensional, contiguous) to be read.

    `hashing.jit.prefetch` asks to write, which takes the line from the other cores.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from llvmlite import ir

        view = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.bitcast(builder.gep(view.data, [args[1]]), cgutils.voidptr_t)
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        declare: Any = cgutils.get_or_insert_function
        hint = declare(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [address, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def add_in_any_order(typingctx: Any, a: Any, b: Any) -> Any:
    """The sum of two float32, one of many that may be summed in any order, so in vectors."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1], flags=["reassoc"])

    return types.float32(types.float32, types.float32), codegen

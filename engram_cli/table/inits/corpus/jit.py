"""The two inner loops of filled rows in vector instructions: Numba leaves them half as fast.

Numba holds an array that a loop adds to in memory; here sums stay in registers. Written for LLVM's
own vectors, which every machine has, in whatever width its registers are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TOKEN_BITS = 20
AHEAD = 32  # vectors that are asked for before they are needed
LANES = 16  # vectors are a multiple of so many values wide
_LINE = 32  # int16 values of a cache line
_i16, _i32, _i64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_f32, _f64 = ir.FloatType(), ir.DoubleType()


def _sums(lanes: int) -> Any:
    @intrinsic
    def add_up(
        typingctx: Any,
        values: Any,
        begin: Any,
        end: Any,
        vectors: Any,
        width: Any,
        at: Any,
        out: Any,
    ) -> Any:
        """Write the sum of count x vectors[token * width + at :][: lanes] over values[begin:end],
        of which there must be one, to out[at:]; gives the sum of the counts."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            views = [
                context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 3, 6)
            ]
            values, vectors, out = (view.data for view in views)
            limit = views[0].nitems
            begin, end, width, at = args[1], args[2], args[4], args[5]
            wide, narrow = ir.VectorType(_i32, lanes), ir.VectorType(_i16, lanes)

            def vector_of(entry: Any) -> Any:
                token = builder.zext(builder.and_(entry, _i32((1 << TOKEN_BITS) - 1)), _i64)
                return builder.gep(vectors, [builder.add(builder.mul(token, width), at)])

            before = builder.block
            body, after = (builder.append_basic_block(name) for name in ("entry", "summed"))
            builder.branch(body)
            builder.position_at_end(body)
            index, total, sums = builder.phi(_i64), builder.phi(_i64), builder.phi(wide)
            entry = builder.load(builder.gep(values, [index]))
            later = builder.add(index, _i64(AHEAD))
            inside = builder.icmp_signed("<", later, limit)
            coming = builder.load(builder.gep(values, [builder.select(inside, later, index)]))
            _prefetch(builder, vector_of(coming), lanes)
            source = builder.bitcast(vector_of(entry), narrow.as_pointer())
            vector = builder.sext(builder.load(source, align=2), wide)
            count = builder.lshr(entry, _i32(TOKEN_BITS))
            added = builder.add(sums, builder.mul(vector, _splat(builder, count, lanes)))
            counted = builder.add(total, builder.zext(count, _i64))
            following = builder.add(index, _i64(1))
            for phi, first, then in (
                (index, begin, following),
                (total, _i64(0), counted),
                (sums, ir.Constant(wide, None), added),
            ):
                phi.add_incoming(first, before)
                phi.add_incoming(then, body)
            builder.cbranch(builder.icmp_signed("<", following, end), body, after)
            builder.position_at_end(after)
            target = builder.bitcast(builder.gep(out, [at]), wide.as_pointer())
            builder.store(added, target, align=4)
            return counted

        size = types.intp
        return types.int64(values, size, size, vectors, size, size, out), codegen

    return add_up


sum_16, sum_32, sum_64 = _sums(16), _sums(32), _sums(64)


@intrinsic
def finish_16(
    typingctx: Any, sums: Any, at: Any, share: Any, mean: Any, scale: Any, out: Any, place: Any
) -> Any:
    """Write float32((sums[at:] x share - mean[at:]) x scale) to out[place:], 16 values."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        views = [
            context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 3, 5)
        ]
        sums, mean, out = (view.data for view in views)
        at, share, scale, place = args[1], args[2], args[4], args[6]
        kind = ir.VectorType(_f64, LANES)

        def block(data: Any, first: Any, item: Any) -> Any:
            return builder.bitcast(
                builder.gep(data, [first]), ir.VectorType(item, LANES).as_pointer()
            )

        value = builder.sitofp(builder.load(block(sums, at, _i32), align=4), kind)
        value = builder.fmul(value, _splat(builder, share, LANES))
        value = builder.fsub(value, builder.load(block(mean, at, _f64), align=8))
        value = builder.fmul(value, _splat(builder, scale, LANES))
        value = builder.fptrunc(value, ir.VectorType(_f32, LANES))
        builder.store(value, block(out, place, _f32), align=4)
        return context.get_dummy_value()

    size, real = types.intp, types.float64
    return types.void(sums, size, real, mean, real, out, size), codegen


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    none = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(none, value, _i32(0))
    places = ir.Constant(ir.VectorType(_i32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, none, places)


def _prefetch(builder: Any, address: Any, values: int) -> None:
    """Ask for the cache lines of int16 values, to be read."""
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _i32, _i32, _i32])
    declare: Any = cgutils.get_or_insert_function
    hint = declare(builder.module, kind, "llvm.prefetch.p0")
    for line in range(0, values, _LINE):
        start = builder.bitcast(builder.gep(address, [_i64(line)]), cgutils.voidptr_t)
        builder.call(hint, [start, _i32(0), _i32(3), _i32(1)])

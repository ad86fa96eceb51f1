"""Sums over stored rows in vector instructions, as LLVM writes them for any machine.

Numba's own loops over a row come out at a fifth of the speed: it widens each item to 32 bits before
it multiplies, and a row is too short for a loop that keeps one sum a lane. Here several rows share
a vector, and lanes that belong together are added in pairs, for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

ITEMS = 32  # of a block
BLOCKS = 16  # whose squares are summed by one call
PRODUCTS = 8  # sums of them by one call
WORDS = 64  # whose products one call takes at most
_VECTOR = 64  # bytes
_INT8, _INT16, _INT32, _INT64 = (
    ir.VectorType(ir.IntType(8 * size), _VECTOR // size) for size in (1, 2, 4, 8)
)
_FLOAT32 = ir.VectorType(ir.FloatType(), _INT32.count)
_REBIAS = (127 - 7) << 23  # what an exponent of e4m3 lacks to one of float32
_ANY_ORDER = ("reassoc", "contract")


def _blocks_of(item_bits: int, squared: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """Return an intrinsic: the sums of squares of `BLOCKS` blocks of items.

    `squared(builder, loaded)` gives the squares of a vector of items, added to 16 lanes, and
    something with a bit set where an item may be NaN.
    """

    @intrinsic
    def squares_of(typingctx: Any, items: Any, at: Any, squares: Any, to: Any) -> Any:
        """Write those of the bytes items[at:] to squares[to:], float32; return whether there is a
        NaN."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            count = BLOCKS * ITEMS * item_bits // 8 // _VECTOR
            sums, nan = [], None
            for vector in range(count):
                place = builder.add(args[1], ir.Constant(args[1].type, vector * _VECTOR))
                loaded = _load(context, builder, signature, args[0], 0, place, _INT8)
                total, flags = squared(builder, loaded)
                sums.append(total)
                nan = flags if nan is None else builder.or_(nan, flags)
            whole = _add_pairs(builder, sums)
            if whole.type == _INT32:
                whole = builder.sitofp(whole, _FLOAT32)
            _store(context, builder, signature, args[2], 2, args[3], whole)
            bits = builder.bitcast(nan, ir.IntType(8 * _VECTOR))
            return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

        return types.boolean(items, types.intp, squares, types.intp), codegen

    return squares_of


def _square_int8(builder: Any, loaded: Any) -> tuple[Any, Any]:
    pairs, total = builder.bitcast(loaded, _INT16), None
    for place in (8, 0):
        total = _add_square(builder, pairs, place, 8, total)
    return _widened(builder, total), _least(builder, loaded, _INT8, 0x80, 0x01)


def _square_int4(builder: Any, loaded: Any) -> tuple[Any, Any]:
    fours, total = builder.bitcast(loaded, _INT16), None
    for place in (12, 8, 4, 0):
        total = _add_square(builder, fours, place, 12, total)
    return _widened(builder, total), _least(builder, loaded, _INT16, 0x8888, 0x1111)


def _add_square(builder: Any, lanes: Any, left: int, right: int, total: Any) -> Any:
    """Add to int16 lanes the square of an item in them, which goes to the top and down again: so
    it keeps its sign."""
    top = builder.shl(lanes, _all(_INT16, left)) if left else lanes
    item = builder.ashr(top, _all(_INT16, right))
    square = builder.mul(item, item)
    return square if total is None else builder.add(total, square)


def _widened(builder: Any, sums: Any) -> Any:
    """Return the sums of each two uint16 lanes as int32."""
    pairs = builder.bitcast(sums, _INT32)
    return builder.add(
        builder.and_(pairs, _all(_INT32, 0xFFFF)), builder.lshr(pairs, _all(_INT32, 16))
    )


def _square_e4m3(builder: Any, loaded: Any) -> tuple[Any, Any]:
    words, total = builder.bitcast(loaded, _INT32), None
    for byte, shift in enumerate((20, 12, 4, -4)):  # to where float32 has its bits
        size = builder.and_(words, _all(_INT32, 0x7F << 8 * byte))
        move = builder.shl if shift > 0 else builder.lshr
        moved = builder.add(move(size, _all(_INT32, abs(shift))), _all(_INT32, _REBIAS))
        value = builder.bitcast(moved, _FLOAT32)
        # One without a leading bit, m / 8 * 2**-6, was read as (1 + m / 8) * 2**-7. What is right
        # for it is too much for the others.
        twice = builder.fmul(value, _all(_FLOAT32, 2.0), flags=_ANY_ORDER)
        small = builder.fsub(twice, _all(_FLOAT32, 2.0**-6), flags=_ANY_ORDER)
        value = builder.select(builder.fcmp_ordered("<", small, value), small, value)
        square = builder.fmul(value, value, flags=_ANY_ORDER)
        total = square if total is None else builder.fadd(total, square, flags=_ANY_ORDER)
    # NaN is the size whose bits are all set: one more reaches the sign.
    size = builder.and_(loaded, _all(_INT8, 0x7F))
    reached = builder.add(size, _all(_INT8, 1))
    return total, builder.and_(reached, _all(_INT8, 0x80))


def _least(builder: Any, loaded: Any, kind: Any, least: int, one: int) -> Any:
    """Return bits where an item equals the least one, which is NaN; no bit where none does."""
    distance = builder.xor(builder.bitcast(loaded, kind), _all(kind, least))
    borrowed = builder.and_(builder.sub(distance, _all(kind, one)), builder.not_(distance))
    return builder.bitcast(builder.and_(borrowed, _all(kind, least)), _INT8)


def _sums_of(lanes: int) -> Any:
    """Return an intrinsic: `PRODUCTS` sums of products, of `lanes` words each."""

    @intrinsic
    def sums_of(
        typingctx: Any, words: Any, at: Any, keys: Any, key_at: Any, sums: Any, to: Any
    ) -> Any:
        """Write those of words[at:] and keys[key_at:] to sums[to:], as `rows.sum_rows` says."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            products = []
            for vector in range(lanes):
                first = ir.Constant(args[1].type, vector * _INT64.count)
                place, key_place = builder.add(args[1], first), builder.add(args[3], first)
                word = _load(context, builder, signature, args[0], 0, place, _INT32)
                key = _load(context, builder, signature, args[2], 2, key_place, _INT32)
                mixed = builder.bitcast(builder.add(word, key), _INT64)
                low = builder.and_(mixed, _all(_INT64, 2**32 - 1))
                high = builder.lshr(mixed, _all(_INT64, 32))
                products.append(builder.mul(low, high))
            whole = _add_pairs(builder, products)
            _store(context, builder, signature, args[4], 4, args[5], whole)
            return context.get_dummy_value()

        size = types.intp
        return types.void(words, size, keys, size, sums, size), codegen

    return sums_of


squares_of_int8 = _blocks_of(8, _square_int8)
squares_of_int4 = _blocks_of(4, _square_int4)
squares_of_e4m3 = _blocks_of(8, _square_e4m3)
sums_of_2, sums_of_4, sums_of_8 = _sums_of(2), _sums_of(4), _sums_of(8)


def _add_pairs(builder: Any, vectors: Sequence[Any]) -> Any:
    """Return one vector of sums: neighbouring lanes are added until the vectors fit one."""
    count = vectors[0].type.count
    even, odd = range(0, 2 * count, 2), range(1, 2 * count, 2)
    while len(vectors) > 1:
        halves = [
            (_shuffle(builder, first, second, even), _shuffle(builder, first, second, odd))
            for first, second in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        floats = vectors[0].type == _FLOAT32
        vectors = [
            builder.fadd(a, b, flags=_ANY_ORDER) if floats else builder.add(a, b) for a, b in halves
        ]
    return vectors[0]


def _shuffle(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    kind = ir.VectorType(ir.IntType(32), len(lanes))
    return builder.shuffle_vector(first, second, ir.Constant(kind, list(lanes)))


def _pointer(
    context: Any, builder: Any, signature: Any, array: Any, which: int, at: Any, kind: Any
) -> Any:
    view = context.make_array(signature.args[which])(context, builder, array)
    return builder.bitcast(builder.gep(view.data, [at]), kind.as_pointer())


def _load(
    context: Any, builder: Any, signature: Any, array: Any, which: int, at: Any, kind: Any
) -> Any:
    return builder.load(_pointer(context, builder, signature, array, which, at, kind), align=1)


def _store(
    context: Any, builder: Any, signature: Any, array: Any, which: int, at: Any, value: Any
) -> None:
    place = _pointer(context, builder, signature, array, which, at, value.type)
    builder.store(value, place, align=1)


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)

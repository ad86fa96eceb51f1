"""Compiles Numba kernels, and gives them what Numba lacks: bit casts, prefetches, vector sums.

`kernel` is the only way a kernel is compiled: without the interpreter lock, cached on disk. The
intrinsics are written for LLVM, so that they run on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, update_wrapper
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from engram_cli.errors import DependencyError
from engram_cli.kernel_cache import KernelCache

TOKEN_BITS = 20  # of an entry of `sum_vectors`: the token; the other 12 bits are its count
LANES = 16  # vectors are a multiple of so many values wide
_AHEAD = 32  # vectors that are prefetched before they are added
_LINE = 32  # int16 values of a cache line
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32, _F64 = ir.FloatType(), ir.DoubleType()


class Kernel:
    """A function that is compiled, or taken from the disk cache, when it is first called.

    Also when a kernel that calls it is compiled. Loading one takes 8 ms, and of a module's kernels
    a command calls few. Attributes are those of Numba's dispatcher.
    """

    def __init__(self, function: Callable[..., Any], make: Callable[[], Any]) -> None:
        update_wrapper(self, function)
        self._make, self._made = make, None

    @property
    def _dispatcher(self) -> Any:
        if self._made is None:
            with global_compiler_lock:  # another lock could wait for this one
                if self._made is None:
                    self._made = self._make()
        return self._made

    @property
    def _numba_type_(self) -> Any:
        return self._dispatcher._numba_type_

    def __call__(self, *args: Any) -> Any:
        return self._dispatcher(*args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._dispatcher, name)


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
        options["no_cfunc_wrapper"] = True  # kernels are called from Python and from each other
        made: Any = njit(**options)(function)
        if cache:
            with _cache_folder(), suppress(RuntimeError):  # no folder is writable
                made._cache = KernelCache(function)
        for signature in signatures:
            made.compile(signature)
        if signatures:
            made.disable_compile()
        return made

    return lambda function: Kernel(function, partial(compile_kernel, function))


@contextmanager
def _cache_folder() -> Iterator[None]:
    """Keep compiled kernels in the user's cache, unless NUMBA_CACHE_DIR says where.

    Next to the sources they would outlive `pip uninstall`, and the folder they keep alive would
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


def _bit_cast(source: Any, target: Any) -> Callable[..., Any]:
    def cast(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), codegen

    made: Callable[..., Any] = intrinsic(cast)
    return made


bits_of = _bit_cast(types.float64, types.uint64)
bits_of_float32 = _bit_cast(types.float32, types.int32)
float32_of_bits = _bit_cast(types.int32, types.float32)


@intrinsic
def add_in_any_order(typingctx: Any, a: Any, b: Any) -> Any:
    """Return the sum of two floats that may be added in any order, and so in vectors."""
    kind = types.float64 if types.float64 in (a, b) else types.float32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1], flags=["reassoc"])

    return kind(kind, kind), codegen


def _lanes_that(condition: Callable[[Any, Any, Any], Any]) -> Any:
    """Return an intrinsic: of 64 values next to each other, the bits of those with a condition."""

    @intrinsic
    def lanes(typingctx: Any, values: Any, index: Any, limit: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, args[0])
            item = args[2].type
            pointer = builder.gep(array.data, [args[1]])
            pointer = builder.bitcast(pointer, ir.VectorType(item, 64).as_pointer())
            loaded = builder.load(pointer, align=item.width // 8)
            found = condition(builder, loaded, _splat(builder, args[2], 64))
            return builder.bitcast(found, _I64)

        return types.uint64(values, types.intp, values.dtype), codegen

    return lanes


def _at_most(builder: Any, values: Any, limit: Any) -> Any:
    return builder.icmp_unsigned("<=", values, limit)


def _without(builder: Any, values: Any, mask: Any) -> Any:
    return builder.icmp_unsigned("==", builder.and_(values, mask), ir.Constant(mask.type, None))


# Of the 64 values of an unsigned array from an index on, bit i says whether the one at index + i is
# at most a limit, or has none of the bits of a mask.
lanes_at_most, lanes_without = _lanes_that(_at_most), _lanes_that(_without)


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """Return the number of the lowest bit that is set; there is one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of `array[index]` (one-dimensional, contiguous) for writing."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        _prefetch(builder, builder.gep(view.data, [args[1]]), write=True)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def prefetch_at(typingctx: Any, address: Any) -> Any:
    """Prefetch the cache line at an address for reading."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, builder.inttoptr(args[0], cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


def _prefetch(builder: Any, pointer: Any, *, write: bool = False) -> None:
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
    hint = _external(builder, kind, "llvm.prefetch.p0")
    address = builder.bitcast(pointer, cgutils.voidptr_t)
    builder.call(hint, [address, _I32(int(write)), _I32(3), _I32(1)])


def _external(builder: Any, kind: Any, name: str) -> Any:
    declare: Any = cgutils.get_or_insert_function
    return declare(builder.module, kind, name)


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
def madvise(typingctx: Any, address: Any, length: Any, advice: Any) -> Any:
    """Make the system call on a page-aligned address; return its result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call = _external(builder, ir.FunctionType(_I32, [cgutils.voidptr_t, _I64, _I32]), "madvise")
        return builder.call(call, [builder.inttoptr(args[0], cgutils.voidptr_t), args[1], args[2]])

    return types.int32(types.uint64, types.intp, types.int32), codegen


@intrinsic
def mincore(typingctx: Any, address: Any, length: Any, pages: Any) -> Any:
    """Make the system call on an aligned address: bit 0 of `pages` [uint8] says what is in memory.

    Return its result.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[2])(context, builder, args[2])
        kind = ir.FunctionType(_I32, [cgutils.voidptr_t, _I64, cgutils.voidptr_t])
        call = _external(builder, kind, "mincore")
        start = builder.inttoptr(args[0], cgutils.voidptr_t)
        return builder.call(call, [start, args[1], builder.bitcast(view.data, cgutils.voidptr_t)])

    return types.int32(types.uint64, types.intp, pages), codegen


def _vector_sum(lanes: int) -> Any:
    """Return the sum over vectors of `lanes` values, which stay in registers.

    Numba holds an array that a loop adds to in memory, which is half as fast.
    """

    @intrinsic
    def sum_vectors(
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
        at least one, to out[at:]. Return the sum of the counts."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values, vectors, out = (_data(context, builder, signature, args, k) for k in (0, 3, 6))
            limit = context.make_array(signature.args[0])(context, builder, args[0]).nitems
            begin, end, width, at = args[1], args[2], args[4], args[5]
            wide, narrow = ir.VectorType(_I32, lanes), ir.VectorType(_I16, lanes)

            def vector_of(entry: Any) -> Any:
                token = builder.zext(builder.and_(entry, _I32((1 << TOKEN_BITS) - 1)), _I64)
                return builder.gep(vectors, [builder.add(builder.mul(token, width), at)])

            before = builder.block
            body, after = (builder.append_basic_block(name) for name in ("entry", "summed"))
            builder.branch(body)
            builder.position_at_end(body)
            index, total, sums = builder.phi(_I64), builder.phi(_I64), builder.phi(wide)
            entry = builder.load(builder.gep(values, [index]))
            later = builder.add(index, _I64(_AHEAD))
            inside = builder.icmp_signed("<", later, limit)
            coming = builder.load(builder.gep(values, [builder.select(inside, later, index)]))
            for line in range(0, lanes, _LINE):
                _prefetch(builder, builder.gep(vector_of(coming), [_I64(line)]))
            source = builder.bitcast(vector_of(entry), narrow.as_pointer())
            vector = builder.sext(builder.load(source, align=2), wide)
            count = builder.lshr(entry, _I32(TOKEN_BITS))
            added = builder.add(sums, builder.mul(vector, _splat(builder, count, lanes)))
            counted = builder.add(total, builder.zext(count, _I64))
            following = builder.add(index, _I64(1))
            for phi, first, then in (
                (index, begin, following),
                (total, _I64(0), counted),
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

    return sum_vectors


sum_16, sum_32, sum_64 = _vector_sum(16), _vector_sum(32), _vector_sum(64)


@intrinsic
def finish_16(
    typingctx: Any, sums: Any, at: Any, share: Any, mean: Any, scale: Any, out: Any, place: Any
) -> Any:
    """Write float32((sums[at:] x share - mean[at:]) x scale) to out[place:], 16 values."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, mean, out = (_data(context, builder, signature, args, k) for k in (0, 3, 5))
        at, share, scale, place = args[1], args[2], args[4], args[6]
        kind = ir.VectorType(_F64, LANES)

        def block(data: Any, first: Any, item: Any) -> Any:
            pointer = ir.VectorType(item, LANES).as_pointer()
            return builder.bitcast(builder.gep(data, [first]), pointer)

        value = builder.sitofp(builder.load(block(sums, at, _I32), align=4), kind)
        value = builder.fmul(value, _splat(builder, share, LANES))
        value = builder.fsub(value, builder.load(block(mean, at, _F64), align=8))
        value = builder.fmul(value, _splat(builder, scale, LANES))
        value = builder.fptrunc(value, ir.VectorType(_F32, LANES))
        builder.store(value, block(out, place, _F32), align=4)
        return context.get_dummy_value()

    size, real = types.intp, types.float64
    return types.void(sums, size, real, mean, real, out, size), codegen


def _data(context: Any, builder: Any, signature: Any, args: Any, index: int) -> Any:
    """Return the pointer to the first item of an array among the arguments."""
    return context.make_array(signature.args[index])(context, builder, args[index]).data


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    none = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(none, value, _I32(0))
    places = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, none, places)

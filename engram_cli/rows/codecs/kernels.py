"""float32 to stored items and back as Numba kernels, rounded to nearest, ties to even.

Arrays are flat: rows of `dim` values one after another, each row in blocks of `block` values (the
last may be shorter), a float32 scale a block. `tests/rows/codec_reference.py` has the plain twins.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int32, uint8, uint16

from engram_cli.jit import bits_of_float32, float32_of_bits, kernel

_ABSOLUTE = 0x7FFFFFFF
_INFINITY = 0x7F800000
_NAN = 0x7FC00000
_LEAST_POWER = 0x00400000  # 2**-127
_HALF = np.float32(0.5)
_HALF_BITS = 0x3F000000
_HALF_OVERFLOW = 0x47800000  # 2**16: past the largest float16 whatever the rounding
_HALF_NORMAL = 0x38800000  # 2**-14, the smallest normal float16


@kernel("void(float32[::1], uint16[::1])")
def to_bfloat16(values, out):  # type: ignore[no-untyped-def]
    """The upper half of each value's bits, rounded; a NaN keeps its sign and becomes quiet."""
    for i in range(values.size):
        bits = bits_of_float32(values[i])
        odd = (bits >> int32(16)) & int32(1)
        rounded = int32(bits + int32(0x7FFF) + odd) >> int32(16)
        nan = (bits >> int32(16)) | int32(0x40)
        out[i] = uint16(nan if (bits & int32(_ABSOLUTE)) > int32(_INFINITY) else rounded)


@kernel("void(float32[::1], uint16[::1])")
def to_float16(values, out):  # type: ignore[no-untyped-def]
    """The IEEE binary16 of each value; 3x NumPy's cast, which takes no vector instructions."""
    for i in range(values.size):
        bits = bits_of_float32(values[i])
        size = bits & int32(_ABSOLUTE)
        sign = (bits >> int32(16)) & int32(0x8000)
        odd = (size >> int32(13)) & int32(1)
        # Rebias the exponent from 127 to 15, round the 13 bits that fall away.
        normal = int32(size - int32(0x38000000) + int32(0xFFF) + odd) >> int32(13)
        # Adding 0.5 shifts a small value to where its last float16 bit is the last float32 bit.
        small = int32(bits_of_float32(float32_of_bits(size) + _HALF) - int32(_HALF_BITS))
        half = small if size < int32(_HALF_NORMAL) else normal
        half = int32(0x7C00) if size >= int32(_HALF_OVERFLOW) else half
        half = int32(0x7E00) if size > int32(_INFINITY) else half
        out[i] = uint16(half | sign)


_HALF_REBIAS = np.float32(2.0**112)  # between the exponents of float16 and of float32


@kernel("void(uint16[::1], float32[::1])")
def from_float16(halves, out):  # type: ignore[no-untyped-def]
    """The float32 of each IEEE binary16; 10x NumPy's cast, which takes no vector instructions."""
    for i in range(out.size):
        bits = int32(halves[i])
        moved = int32((bits & int32(0x7FFF)) << int32(13))
        # Only the exponent's bias is wrong, also of the smallest; the largest keep all its bits.
        size = bits_of_float32(float32_of_bits(moved) * _HALF_REBIAS)
        size = int32(moved | int32(_INFINITY)) if moved >= int32(0x7C00 << 13) else size
        out[i] = float32_of_bits(int32(size | ((bits & int32(0x8000)) << int32(16))))


_E4M3_NORMAL = 0x3C800000  # 2**-6, the smallest normal e4m3
_E4M3_MAGIC = np.float32(2.0**14)  # its last float32 bit is 2**-9, the last of a small e4m3
_E4M3_MAGIC_BITS = 0x46800000
_INTEGER_MAGIC = np.float32(1.5 * 2.0**23)  # its last float32 bit is 1
_INTEGER_MAGIC_BITS = 0x4B400000
_LEAST = np.float32(1)  # a scale of 0 belongs to values that are all stored as 0


@kernel("void(float32[::1], intp, intp, float32[::1])")
def block_tops(values, dim, block, tops):  # type: ignore[no-untyped-def]
    """The largest size of a finite value in each block, 0 where there is none."""
    at = 0
    for begin in range(0, values.size, dim):
        for first in range(0, dim, block):
            part = values[begin + first : begin + min(first + block, dim)]
            top = int32(0)
            for i in range(part.size):
                size = bits_of_float32(part[i]) & int32(_ABSOLUTE)
                top = max(top, size if size < int32(_INFINITY) else int32(0))
            tops[at] = float32_of_bits(top)
            at += 1


@kernel("void(float32[::1], float32[::1], intp, intp, uint8[::1])")
def to_e4m3(values, scales, dim, block, out):  # type: ignore[no-untyped-def]
    """The e4m3 of each value over its scale; past 448 it stays 448, not finite it is NaN."""
    at = 0
    for begin in range(0, values.size, dim):
        for first in range(0, dim, block):
            part = values[begin + first : begin + min(first + block, dim)]
            items = out[begin + first : begin + min(first + block, dim)]
            scale = scales[at] if scales[at] > 0 else _LEAST
            at += 1
            for i in range(part.size):
                bits = bits_of_float32(part[i] / scale)
                size = bits & int32(_ABSOLUTE)
                odd = (size >> int32(20)) & int32(1)
                # Rebias the exponent from 127 to 7, round the 20 bits that fall away.
                normal = int32(size - int32(0x3C000000) + int32(0x7FFFF) + odd) >> int32(20)
                raised = bits_of_float32(float32_of_bits(size) + _E4M3_MAGIC)
                small = int32(raised - int32(_E4M3_MAGIC_BITS))
                code = small if size < int32(_E4M3_NORMAL) else min(normal, int32(0x7E))
                own = bits_of_float32(part[i]) & int32(_ABSOLUTE)
                code = int32(0x7F) if own >= int32(_INFINITY) else code
                items[i] = uint8(code | ((bits >> int32(24)) & int32(0x80)))


@kernel("void(float32[::1], float32[::1], intp, intp, int32, uint8[::1])")
def to_integers(values, scales, dim, block, limit, out):  # type: ignore[no-untyped-def]
    """The int8 of each value over its scale, -limit to limit; not finite it is -limit - 1."""
    top = float32(limit)
    at = 0
    for begin in range(0, values.size, dim):
        for first in range(0, dim, block):
            part = values[begin + first : begin + min(first + block, dim)]
            items = out[begin + first : begin + min(first + block, dim)]
            scale = scales[at] if scales[at] > 0 else _LEAST
            at += 1
            for i in range(part.size):
                value = min(max(part[i] / scale, -top), top)
                code = int32(bits_of_float32(value + _INTEGER_MAGIC) - int32(_INTEGER_MAGIC_BITS))
                size = bits_of_float32(part[i]) & int32(_ABSOLUTE)
                code = int32(-limit - 1) if size >= int32(_INFINITY) else code
                items[i] = uint8(code & int32(0xFF))


@kernel("void(uint8[::1], float32[::1], float32[::1], intp, intp, float32[::1])")
def from_bytes(items, meanings, scales, dim, block, values):  # type: ignore[no-untyped-def]
    """`meanings` [256] of each item, times its scale."""
    at = 0
    for begin in range(0, values.size, dim):
        for first in range(0, dim, block):
            part = items[begin + first : begin + min(first + block, dim)]
            out = values[begin + first : begin + min(first + block, dim)]
            scale = scales[at]
            at += 1
            for i in range(part.size):
                out[i] = meanings[part[i]] * scale


_E4M3_BIAS = 0x3C000000  # 120 << 23: what an exponent of e4m3 lacks to one of float32
_E4M3_SMALL = np.float32(2.0**-9)  # the last bit of a small e4m3


@kernel("void(uint8[::1], uint8[::1], uint16[::1])")
def e4m3_to_bfloat16(items, exponents, out):  # type: ignore[no-untyped-def]
    """bfloat16 of each item times 2**(e - 127), 32 items a scale: in vectors, without a table."""
    for block in range(exponents.size):
        part = items[32 * block : 32 * block + 32]
        target = out[32 * block : 32 * block + 32]
        power = int32(exponents[block])
        raised = int32(_LEAST_POWER) if power == 0 else power << int32(23)
        scale = float32_of_bits(int32(_NAN) if power == 255 else raised)
        for i in range(32):
            code = int32(part[i])
            size = code & int32(0x7F)
            normal = float32_of_bits((size << int32(20)) + int32(_E4M3_BIAS))
            value = float32(size) * _E4M3_SMALL if size < int32(8) else normal
            bits = bits_of_float32(value * scale)
            odd = (bits >> int32(16)) & int32(1)
            rounded = int32(bits + int32(0x7FFF) + odd) >> int32(16)
            bad = size == int32(0x7F) or (bits & int32(_ABSOLUTE)) > int32(_INFINITY)
            rounded = int32(0x7FC0) if bad else rounded
            target[i] = uint16(rounded | ((code & int32(0x80)) << int32(8)))


@kernel("void(uint8[::1], float32[::1])")
def powers_of_two(exponents, out):  # type: ignore[no-untyped-def]
    """2**(e - 127) of each byte e, NaN of 255: float32 has e for its exponent, but for the ends."""
    for i in range(out.size):
        bits = int32(exponents[i]) << int32(23)
        bits = int32(_LEAST_POWER) if exponents[i] == 0 else bits
        out[i] = float32_of_bits(int32(_NAN) if exponents[i] == 255 else bits)


@kernel("void(uint8[::1], intp, uint8[::1])")
def to_nibbles(items, dim, out):  # type: ignore[no-untyped-def]
    """Two items a byte, the lower half first; a row of odd `dim` ends in a half of zero."""
    width = (dim + 1) // 2
    pairs = dim // 2
    for row in range(items.size // dim):
        source = items[row * dim : (row + 1) * dim]
        target = out[row * width : (row + 1) * width]
        for i in range(pairs):
            target[i] = uint8((source[2 * i] & 15) | ((source[2 * i + 1] & 15) << 4))
        if dim % 2 == 1:
            target[width - 1] = uint8(source[dim - 1] & 15)


@kernel("void(uint8[::1], intp, uint8[::1])")
def from_nibbles(packed, dim, items):  # type: ignore[no-untyped-def]
    """The halves of each byte, lower first, as items 0 to 15."""
    width = (dim + 1) // 2
    pairs = dim // 2
    for row in range(items.size // dim):
        source = packed[row * width : (row + 1) * width]
        target = items[row * dim : (row + 1) * dim]
        for i in range(pairs):
            target[2 * i] = uint8(source[i] & 15)
            target[2 * i + 1] = uint8(source[i] >> 4)
        if dim % 2 == 1:
            target[dim - 1] = uint8(source[width - 1] & 15)


@kernel("void(float32[::1], float32[::1], uint8[:,::1])")
def to_q8_0(values, steps, blocks):  # type: ignore[no-untyped-def]
    """Store each 32 values as ggml's Q8_0: steps [n], and items from byte 2 of blocks [n, 34].

    The step is the largest size over 127; items are rounded to nearest, halves away from zero. A
    block with a value that is not finite gets a step of NaN.
    """
    for i in range(steps.size):
        part = values[32 * i : 32 * i + 32]
        top = int32(0)
        for j in range(32):
            top = max(top, bits_of_float32(part[j]) & int32(_ABSOLUTE))
        step = float32_of_bits(top) / np.float32(127)
        inverse = np.float32(1) / step
        usable = step > np.float32(0) and inverse <= np.float32(3.4028234e38)
        inverse = inverse if usable else np.float32(0)
        finite = top < int32(_INFINITY)
        steps[i] = step if finite else float32_of_bits(int32(_NAN))
        inverse = inverse if finite else np.float32(0)
        for j in range(32):
            size = float32_of_bits(bits_of_float32(part[j]) & int32(_ABSOLUTE))
            size = size * inverse if finite else np.float32(0)
            whole = int32(size)
            whole += int32(1) if size - float32(whole) >= np.float32(0.5) else int32(0)
            blocks[i, j + 2] = uint8((-whole if part[j] < 0 else whole) & int32(0xFF))

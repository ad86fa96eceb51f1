"""float32 to 16-bit floats as Numba kernels, rounded to nearest, ties to even."""

from __future__ import annotations

import numpy as np
from numba import int32, uint16

from engram_cli.hashing.jit import kernel
from engram_cli.table.jit import bits_of_float32, float32_of_bits

_ABSOLUTE = 0x7FFFFFFF
_INFINITY = 0x7F800000
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

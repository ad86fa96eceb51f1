"""int8 and int8_b32: items -127 to 127, -128 for NaN, a scale for each row or 32 values."""

from __future__ import annotations

from engram_cli.rows.codecs.integers import integer_codec

INT8 = integer_codec("int8", limit=127, blocks=False)
INT8_B32 = integer_codec("int8_b32", limit=127, blocks=True)

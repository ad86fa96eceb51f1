"""int4 and int4_b32: items -7 to 7, -8 for NaN, two a byte, a scale for each row or 32 values."""

from __future__ import annotations

from engram_cli.rows.codecs.integers import integer_codec

INT4 = integer_codec("int4", limit=7, blocks=False)
INT4_B32 = integer_codec("int4_b32", limit=7, blocks=True)

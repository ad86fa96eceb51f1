"""How float32 values are stored: a codec a logical dtype, one file and one line for each."""

from __future__ import annotations

from engram_cli.registry import Registry
from engram_cli.rows.codecs.base import Codec

CODECS: Registry[Codec] = Registry(
    "dtype",
    {
        "float32": "engram_cli.rows.codecs.float:FLOAT32",
        "float16": "engram_cli.rows.codecs.float:FLOAT16",
        "bfloat16": "engram_cli.rows.codecs.float:BFLOAT16",
        "fp8_e8m0": "engram_cli.rows.codecs.fp8_e8m0:FP8_E8M0",
        "fp8": "engram_cli.rows.codecs.fp8:FP8",
        "int8": "engram_cli.rows.codecs.int8:INT8",
        "int8_b32": "engram_cli.rows.codecs.int8:INT8_B32",
        "int4": "engram_cli.rows.codecs.int4:INT4",
        "int4_b32": "engram_cli.rows.codecs.int4:INT4_B32",
    },
)

"""How float32 values are stored: a codec a logical dtype, one file and one line for each."""

from __future__ import annotations

from engram_cli.registry import Registry
from engram_cli.table.codecs.base import Codec

CODECS: Registry[Codec] = Registry(
    "dtype",
    {
        "float32": "engram_cli.table.codecs.float:FLOAT32",
        "float16": "engram_cli.table.codecs.float:FLOAT16",
        "bfloat16": "engram_cli.table.codecs.float:BFLOAT16",
    },
)

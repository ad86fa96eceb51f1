"""What a stored row is: its dtype, its codec, and how rows are read from any artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.registry import Registry

if TYPE_CHECKING:
    from engram_cli.rows.dtypes import RowType

DTYPES: Registry[RowType] = Registry(
    "dtype",
    {
        "float32": "engram_cli.rows.dtypes:FLOAT32",
        "float16": "engram_cli.rows.dtypes:FLOAT16",
        "bfloat16": "engram_cli.rows.dtypes:BFLOAT16",
        "fp8_e8m0": "engram_cli.rows.dtypes:FP8_E8M0",
        "fp8": "engram_cli.rows.dtypes:FP8",
        "int8": "engram_cli.rows.dtypes:INT8",
        "int8_b32": "engram_cli.rows.dtypes:INT8_B32",
        "int4": "engram_cli.rows.dtypes:INT4",
        "int4_b32": "engram_cli.rows.dtypes:INT4_B32",
    },
    # Rows of other programs' files, which are read and not written.
    unlisted={
        name: f"engram_cli.rows.codecs.blocks:{name.upper()}"
        for name in ("e8m0_e4m3", "q8_0", "q4_0", "q4_k", "q6_k")
    }
    | {"nvfp4": "engram_cli.rows.codecs.nvfp4:NVFP4"},
)

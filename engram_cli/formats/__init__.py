"""Formats of artifacts that hold rows: one file and one line of `FORMATS` each.

`base` says what a format is: how it is recognised, its reader, which gives a `RowSource`, and what
else it may offer. `TARGETS` are what `convert` writes. `bundle` and its neighbours are read by the
runtime too, and need NumPy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.registry import Registry

if TYPE_CHECKING:
    from engram_cli.formats.base import Format, Target

# In the order in which they are asked whether a path is theirs.
FORMATS: Registry[Format] = Registry(
    "format",
    {
        "bundle": "engram_cli.formats.bundle_rows:FORMAT",
        "statistics": "engram_cli.formats.statistics:FORMAT",
        "table": "engram_cli.formats.zarr_table:FORMAT",
        "row264": "engram_cli.formats.row264:FORMAT",
        "deepseek-v4.1": "engram_cli.formats.deepseek_v41:FORMAT",
        "qwen-ple": "engram_cli.formats.qwen_ple:FORMAT",
        "longcat": "engram_cli.formats.longcat:FORMAT",
        "gguf": "engram_cli.formats.gguf:FORMAT",
        "engramdb": "engram_cli.formats.engramdb:FORMAT",
        "overlay": "engram_cli.formats.overlay:FORMAT",
        "engram-peft": "engram_cli.formats.engram_peft:FORMAT",
        "demo": "engram_cli.formats.demo:FORMAT",
    },
)

# What `convert --to` writes, in addition to a table.
TARGETS: Registry[Target] = Registry(
    "target",
    {
        "gguf": "engram_cli.formats.gguf_new:TARGET",
        "row264": "engram_cli.formats.row264:TARGET",
        "deepseek-v4.1": "engram_cli.formats.deepseek_write:TARGET",
        "qwen-ple": "engram_cli.formats.qwen_write:TARGET",
        "engramdb": "engram_cli.formats.engramdb_write:TARGET",
        "engram-peft": "engram_cli.formats.engram_peft_write:TARGET",
        "demo": "engram_cli.formats.demo_write:TARGET",
        "pleo": "engram_cli.formats.overlay_write:PLEO",
        "plepatch": "engram_cli.formats.overlay_write:PLEPATCH",
    },
)

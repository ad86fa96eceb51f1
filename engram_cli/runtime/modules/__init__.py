"""The modules that turn looked-up rows into what a layer adds to its hidden states.

One file a module, each exactly the arithmetic of docs/reference/modules.md, with the names of its
published weights. `base` has what they share.
"""

from __future__ import annotations

from engram_cli.registry import Registry
from engram_cli.runtime.modules.base import MemoryModule

MODULES: Registry[type[MemoryModule]] = Registry(
    "module",
    {
        "engram-v1": "engram_cli.runtime.modules.engram_v1:EngramV1",
        "deepseek-v4.1": "engram_cli.runtime.modules.deepseek_v41:DeepSeekV41",
        "qwen-ple": "engram_cli.runtime.modules.qwen_ple:QwenPLE",
        "engram-peft": "engram_cli.runtime.modules.engram_peft:EngramPeft",
        "longcat": "engram_cli.runtime.modules.longcat:LongCat",
    },
)

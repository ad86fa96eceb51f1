"""The one place that picks an implementation of the runtime's operations; today there is one.

Names and signatures are those of `reference`, the plain twins that any other must equal.
"""

from __future__ import annotations

from engram_cli.runtime.reference import (
    HashTensors,
    carry_after,
    causal_conv,
    compress,
    gather,
    hash_rows,
    is_hole,
    visible,
)

__all__ = [
    "HashTensors",
    "carry_after",
    "causal_conv",
    "compress",
    "gather",
    "hash_rows",
    "is_hole",
    "visible",
]

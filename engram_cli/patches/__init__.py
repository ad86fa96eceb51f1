"""Patches: some rows of a table with the values that replace them. Needs NumPy only.

What makes patches reads tables, which needs more; it is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engram_cli.patches.patch import LayerPatch as LayerPatch
from engram_cli.patches.patch import Patch as Patch
from engram_cli.patches.patch_file import read_patch as read_patch
from engram_cli.patches.patch_file import write_patch as write_patch

if TYPE_CHECKING:
    from engram_cli.patches.making import make_patch as make_patch
    from engram_cli.patches.making import stored_patch as stored_patch


def __getattr__(name: str) -> Any:
    if name in ("make_patch", "stored_patch"):
        return getattr(import_module("engram_cli.patches.making"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

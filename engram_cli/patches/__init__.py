"""Patches: some rows of a table with the values that replace them. Needs NumPy only."""

from __future__ import annotations

from engram_cli.patches.making import make_patch as make_patch
from engram_cli.patches.making import stored_patch as stored_patch
from engram_cli.patches.patch import LayerPatch as LayerPatch
from engram_cli.patches.patch import Patch as Patch
from engram_cli.patches.patch_file import read_patch as read_patch
from engram_cli.patches.patch_file import write_patch as write_patch

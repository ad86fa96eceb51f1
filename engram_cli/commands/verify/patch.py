"""Checks a patch file: its header, its row numbers and values, and the digest that it states."""

from __future__ import annotations

from pathlib import Path

from engram_cli.formats.base import Checks
from engram_cli.patches.patch_file import read_patch

PATCH = "patch"


def check_patch(path: Path, checks: Checks) -> None:
    """Read a patch whole and note what was checked. Raises ArtifactError for what is wrong."""
    checks.files, checks.stored_bytes = 1, path.stat().st_size
    patch = read_patch(path)
    checks.checked += ["header", "row numbers and values"]
    if patch.stated is None:
        checks.not_checked.append(
            "digest: the file states none, so that damage to its values is not found"
        )
    else:
        checks.checked.append("digest")

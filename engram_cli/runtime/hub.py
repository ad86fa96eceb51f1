"""A checkpoint's folder on this machine, for a path or for a model on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engram_cli.errors import DependencyError, InputError
from engram_cli.files import local_path

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
_PATTERNS = ("engram/*", "engram_*/*")


def local_checkpoint(path: str | Path, *, subfolder: str = "", **options: Any) -> Path:
    """Return `path` where it is one of this machine; for `org/name` the snapshot of its bundles.

    The snapshot is that of huggingface_hub, in its cache; `options` are passed to it (`revision`,
    `token`, `cache_dir`, `local_files_only`). `subfolder`: the one of the model that is meant.
    Raises InputError for a model that is not found, DependencyError without huggingface_hub.
    """
    if not isinstance(path, str) or not _REPO.fullmatch(path) or Path(path).exists():
        return local_path(path) / subfolder
    patterns = [f"{subfolder}/{pattern}".lstrip("/") for pattern in _PATTERNS]
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DependencyError(
            f"there is no folder {path}, and the Hub needs huggingface_hub",
            "check the path, or run python -m pip install huggingface_hub",
        ) from None
    try:
        return Path(snapshot_download(path, allow_patterns=patterns, **options)) / subfolder
    except (OSError, ValueError) as error:  # its errors of HTTP are OSErrors
        raise InputError(
            f"there is no folder {path}, and the Hub gave no such model: "
            f"{str(error).strip().splitlines()[0]}",
            "check the path, or the name and your access (hf auth login)",
        ) from None

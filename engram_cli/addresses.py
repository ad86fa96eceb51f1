"""Addresses of remote stores, told from paths on this machine."""

from __future__ import annotations

import re
from pathlib import Path

# Protocols that are addresses even without a slash after the colon.
_STORES = "s3|s3a|gs|gcs|hf|abfs|az|http|https|ftp|ssh"
_ADDRESS = re.compile(rf"({_STORES}):(/*)|([A-Za-z][A-Za-z0-9+.-]+):(/+)", re.IGNORECASE)


def address_of(path: Path | str) -> str | None:
    """`path` as the address that was meant by it, None for a path on this machine.

    pathlib takes one slash out of s3://bucket/key; it is put back.
    """
    match = _ADDRESS.match(str(path))
    if match is None:
        return None
    protocol, slashes = match[1] or match[3], match[2] or match[4] or ""
    if slashes == "/":
        slashes = "///" if protocol == "file" else "//"
    return f"{protocol}:{slashes}{str(path)[match.end() :]}"

"""What a file was when a bundle was made that refers to it: size, time of change, first bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.files import open_regular

HEAD_BYTES = 2**16  # of a file's beginning, which its digest covers


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What a file was when it was referred to: size in bytes, time of its last change in
    nanoseconds, and the SHA-256 of its first 64 KiB."""

    size: int
    changed: int
    head: str

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Stamp a file. Raises OSError, also for one that is no regular file."""
        with open_regular(path) as file:
            about = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
        return cls(size=about.st_size, changed=about.st_mtime_ns, head=f"sha256:{head}")

    def difference(self, found: FileStamp) -> str:
        """Return in words how a file that is now `found` differs."""
        if self.size != found.size:
            return f"{found.size:,} bytes, not {self.size:,}"
        if self.head != found.head:
            return "its first 64 KiB are others"
        return "it was written to at another time"

    def to_json(self) -> dict[str, Any]:
        """Return the stamp as `engram.json` has it."""
        return {"bytes": self.size, "changed": str(self.changed), "head": self.head}

    @classmethod
    def from_json(cls, name: str, about: Mapping[str, Any]) -> FileStamp:
        """Read the stamp of the file `name`. Raises ValueError and its kin."""
        size, changed, head = about["bytes"], about["changed"], about["head"]
        if type(size) is not int or size < 1 or not isinstance(head, str):
            raise ValueError(f"the file {name!r} has no size or digest")
        return cls(size=size, changed=int(changed), head=head)

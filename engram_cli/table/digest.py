"""The digest that names a table's content; light, so that readers of references can compute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engram_cli.files import canonical_json, sha256_bytes

_NOT_CONTENT = ("digest", "complete", "tool_version")


def content_digest(attributes: Mapping[str, Any]) -> str:
    """The SHA-256 of all attributes of the group but those that do not decide the content."""
    content = {key: value for key, value in attributes.items() if key not in _NOT_CONTENT}
    return sha256_bytes(b"engram table 1\n", canonical_json(content))

"""JSON of unknown origin: bytes in, a value out that can be compared, measured and written again.

Every artifact is described in JSON, and every one of these descriptions is read through here.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 64  # lists in lists; our own documents reach 8
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(raw: bytes) -> Any:
    """Return the JSON value in `raw`. Raises ValueError, and nothing else, for what is none.

    A text with half a surrogate pair cannot be written as UTF-8, and lists nested without end
    cannot be copied, so both are refused here rather than wherever they are used.
    """
    try:
        text = raw.decode(json.detect_encoding(raw))
        value = json.loads(text)
        if not _is_shallow(value):
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except UnicodeEncodeError:
        raise ValueError("a text in it holds half a surrogate pair") from None
    return value


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False

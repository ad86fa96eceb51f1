"""Sizes as people write them: 646400, 16M, 5GB, 64MiB."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)([KMGT]I?)?B?", re.IGNORECASE | re.ASCII)


def read_size(text: str) -> int:
    """A count or a number of bytes. Raises ValueError, which says what is wrong with `text`."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"'{text}' is not a number such as 646400, 16M or 5GB (units: K, M, G, T; "
            "KiB, MiB, GiB, TiB)"
        )
    value = float(match[1].replace("_", "")) * (_UNITS | _BINARY)[(match[2] or "").upper()]
    if value != int(value):
        raise ValueError(f"'{text}' is not a whole number")
    return int(value)

"""Parses JSON that others wrote: numbers of any length, and the memory that it will take."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import Any

from engram_cli.errors import CorpusError

MOST_DESCRIPTION = 2**28  # bytes of memory: an MDS index of 100,000 shards
_CONTINUED = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
_WIDE = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")  # characters of four bytes in a str
_CONTAINER, _VALUE = 64, 40  # bytes of an empty object, and of a number in a list


@dataclass(frozen=True, slots=True)
class LongInteger:
    """An integer of more digits than Python converts."""

    digits: str

    def __str__(self) -> str:
        return self.digits


def loads(source: str | bytes) -> Any:
    """Parse JSON; an integer with more digits than Python converts is a `LongInteger`.

    Raises ValueError, RecursionError.
    """
    try:
        return json.loads(source)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # the limit of digits, which costs a call for each integer
        return json.loads(source, parse_int=_integer)


def _integer(digits: str) -> int | LongInteger:
    most = sys.get_int_max_str_digits()
    return LongInteger(digits) if most and len(digits.lstrip("-")) > most else int(digits)


def check_size(raw: bytes, name: str) -> None:
    """Raise CorpusError for a description of a data set that would take too much memory."""
    size = sum(decoded_size(raw))
    if size > MOST_DESCRIPTION:
        raise CorpusError(
            f"{name}, of {len(raw):,} bytes, may take {size:,} bytes of memory; the most is "
            f"{MOST_DESCRIPTION:,}",
            "divide the data set",
        )


def decoded_size(raw: bytes) -> tuple[int, int]:
    """The most bytes that JSON takes as text and, in addition to that, as values.

    Both are upper bounds: a bracket or a comma may be part of a text.
    """
    characters = len(raw) if raw.isascii() else len(raw.translate(None, _CONTINUED))
    width = 4 if _WIDE.search(raw) else 1 if raw.isascii() and b"\\u" not in raw else 2
    containers = raw.count(b"{") + raw.count(b"[")
    return characters * width, containers * _CONTAINER + raw.count(b",") * _VALUE

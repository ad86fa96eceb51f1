"""Text on its way to a terminal: what acts on one is shown, and what it cannot write is spelled.

Labels, tokens, file names and model types come from files of unknown origin. All that the command
line writes passes here: `Console` for people, `plain_json` for programs, `plain` for lone lines.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

# Control characters but tab and line feed, marks that reorder a line, halves of surrogate pairs.
_ACTING = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_HANDLER = "engram-plain"
_SPELLED = {"→": "->", "±": "+-", "\u00d7": "x", "·": ".", "␣": "_", "↵": "/", "─": "-", "…": "..."}
_LEVELS = dict(zip("▁▂▃▄▅▆▇█", "._-=+*%#", strict=True))


def plain(text: str) -> str:
    """Return `text` with U+FFFD for each character that would act on a terminal."""
    return _ACTING.sub("\ufffd", text)


def one_line(name: str) -> str:
    """Return a name with its line breaks and tabs spelled, so that it cannot forge a line."""
    return name.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def plain_json(value: Any) -> str:
    """Return `value` as indented JSON; what acts on a terminal, or cannot be written, escaped."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    text = json.dumps(value, default=str, ensure_ascii=encoding != "utf8", indent=2)
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def spell_what_streams_cannot() -> None:
    """Let stdout and stderr spell characters that are not in their encoding, instead of failing."""
    codecs.register_error(_HANDLER, _spell)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_spelled, text)), error.end


def _spelled(character: str) -> str:
    known = _SPELLED.get(character) or _LEVELS.get(character)
    if known is not None:
        return known
    if character == "\ufffd":
        return "?"
    alike = unicodedata.normalize("NFKD", character)
    if alike.isascii():
        return alike
    return character.encode("ascii", "backslashreplace").decode()


def clean_segments(segments: Iterable[Any]) -> Iterable[Any]:
    """Return rich's segments, their texts plain; those that steer the terminal are rich's own."""
    for segment in segments:
        known = segment.control is not None or not _ACTING.search(segment.text)
        yield segment if known else segment._replace(text=plain(segment.text))

"""HTML that is safe by construction: text is escaped unless it is already `Html`.

Texts of n-grams come from a corpus and are untrusted. They reach a page only through `tag`, which
escapes, and `embed_json`, whose value can end neither its element nor a line.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

VOID = {"meta", "link", "br", "hr", "col"}
COLORS = 8  # of the palette; orders beyond repeat them
_JOINERS = "\u200c\u200d"  # needed to write some scripts, and emoji
_SIGNS = {" ": "␣", "␣": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
# Controls but white space, marks of direction, halves of surrogate pairs.
_ACTING = re.compile(
    "[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MOST_SHOWN = 240  # characters of an n-gram


class Html(str):
    """Markup that needs no more escaping."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Return an element. `class_` is class, `data_tip` data-tip; None leaves an attribute out."""
    opening = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        own = key.rstrip("_").replace("_", "-")
        opening.append(own if value is True else f'{own}="{escape(_short(value))}"')
    start = f"<{' '.join(opening)}>"
    return Html(start if name in VOID else f"{start}{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Return children one after another, escaped unless they are `Html`; None is nothing."""
    return Html(
        "".join(
            child if isinstance(child, Html) else escape(str(child))
            for child in children
            if child is not None
        )
    )


def escape(text: str) -> Html:
    """Return text for an element or a quoted attribute.

    U+FFFD replaces characters that UTF-8 or HTML cannot hold, or that reorder their neighbours.
    """
    return Html(html.escape(_ACTING.sub("\ufffd", text), quote=True))


def embed_json(value: Any, name: str) -> Html:
    """Return a JSON block with id `name`, which no text inside can end.

    Raises ValueError for NaN.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def hue(color: int) -> str:
    """Return the class of a color of the palette, which has eight."""
    return f"c{color % COLORS}"


def unbroken(text: str) -> str:
    """Return text in which no line ends inside "n-gram" or "look-up"."""
    return text.replace("n-gram", "n\u2011gram").replace("look-up", "look\u2011up")


def ngram(text: str) -> Html:
    """Return the tokens of an n-gram, separated by spaces in `text`, as boxes.

    The caller writes a space inside a token as ␣.
    """
    shown = text[:_MOST_SHOWN].split(" ") + ([] if len(text) <= _MOST_SHOWN else ["…"])
    tokens = [tag("span", visible(token), class_="tok") for token in shown if token]
    if not tokens:
        tokens = [tag("i", "empty", class_="sign")]
    return tag("code", tag("bdi", *tokens), class_="ngram")


def visible(text: str) -> Html:
    """Return text with marks in place of invisible characters."""
    parts: list[Html] = []
    plain = ""
    for character in text:
        sign = _sign(character)
        if sign is None:
            plain += character
            continue
        parts += [escape(plain), tag("i", sign, class_="sign")]
        plain = ""
    return join([*parts, escape(plain)])


def _sign(character: str) -> str | None:
    """Return the mark of an invisible character; None for a visible one."""
    if character in _SIGNS:
        return _SIGNS[character]
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs") and character not in _JOINERS:
        return f"\\u{{{ord(character):x}}}"
    return None


def _short(value: object) -> str:
    """Return coordinates to a hundredth, other values as they are."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
    return str(value)

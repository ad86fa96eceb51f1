"""Normalises tokens to the key that look-alike tokens share (docs/reference/schemes.md).

The normalisers are those of `tokenizers`, because published tables were hashed with them: another
library's Unicode version would move ids. A plain twin on `unicodedata` is in tests/vocab.
"""

from __future__ import annotations

import re
from collections.abc import Callable

REPLACEMENT = "\ufffd"
_LONE_SPACE = "\ue000"
_RUNS = re.compile(r"[ \t\r\n]+")
# Unicode's White_Space; str.strip() would take the separators U+001C..U+001F too.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def normalizer() -> Callable[[str], str]:
    """Return the normaliser as a function of one text; ASCII, half of all tokens, takes a short
    cut."""
    chain = library_normalizer()

    def normalize(text: str) -> str:
        return _normalize_ascii(text) if text.isascii() else chain(text)

    return normalize


def library_normalizer() -> Callable[[str], str]:
    """Return the normaliser of `tokenizers`, without the short cut."""
    from tokenizers import Regex, normalizers

    chain = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), _LONE_SPACE),
            normalizers.Strip(),
            normalizers.Replace(_LONE_SPACE, " "),
        ]
    )
    normalize: Callable[[str], str] = chain.normalize_str
    return normalize


def token_key(text: str, token: str, normalize: Callable[[str], str]) -> str:
    """Return the key of one token: its spelling when it is a part of a character, else its normal
    form.

    `text` is the token decoded alone, `token` its spelling in the vocabulary.
    """
    if REPLACEMENT in text:
        return token
    return normalize(text) or text


def _normalize_ascii(text: str) -> str:
    """Return what the chain does to ASCII: no character of it decomposes or carries an accent."""
    text = _RUNS.sub(" ", text.lower())
    return " " if text == " " else text.strip(_WHITE)

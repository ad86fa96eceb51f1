"""The pad token of a tokenizer: what the hash reads before the start of a document.

It must be a token that no text holds, or document starts share their rows with that text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engram_cli.errors import EngramError
from engram_cli.files import read_json

_PAD_NAMES = ("pad", "padding", "finetunerightpadid")
# Without a pad token: what models pad with instead, the likeliest first.
_OTHER_NAMES = ("endoftext", "eos", "/s", "endofsentence", "s", "bos", "unk")


def choose_pad(special: Mapping[int, str], declared: int | None = None) -> int | None:
    """The id to pad with: the special token called pad, else the `declared` one, else EOS.

    `special` are the spellings of the special tokens by id. A declared token that is not special
    is taken only where there are none; None where nothing was declared either.
    """
    by_name: dict[str, int] = {}
    for token_id in sorted(special):
        by_name.setdefault(_plain(special[token_id]), token_id)
    found = [by_name[name] for name in _PAD_NAMES if name in by_name]
    if declared is not None and declared in special:
        found.append(declared)
    found += [by_name[name] for name in _OTHER_NAMES if name in by_name]
    found += sorted(special)[:1]
    return found[0] if found else declared


def declared_pad(tokenizer: Path, ids: Mapping[str, int]) -> int | None:
    """The pad id that the files next to a tokenizer.json name, None where they name no token.

    `ids` are the ids of all tokens by their spelling. tokenizer_config.json comes before
    config.json.
    """
    token = _value(tokenizer.with_name("tokenizer_config.json"), "pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and token in ids:
        return ids[token]
    number = _value(tokenizer.with_name("config.json"), "pad_token_id")
    return number if type(number) is int and number in ids.values() else None


def _value(path: Path, key: str) -> Any:
    """An entry of a JSON file that may be missing, damaged, or have it in its text config."""
    with suppress(EngramError):
        document = read_json(path, "a checkpoint's settings")
        inner = document.get("text_config")
        return document.get(key, inner.get(key) if isinstance(inner, dict) else None)
    return None


def _plain(token: str) -> str:
    """The token's name in small letters: `<|PAD|>` and `[PAD]` as pad, `</s>` as /s."""
    letters = (sign for sign in unicodedata.normalize("NFKC", token) if sign.isalnum())
    name = "".join(letters).lower()
    return f"/{name}" if token.startswith("</") else name

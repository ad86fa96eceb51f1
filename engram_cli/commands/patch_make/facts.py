"""Reads the facts of an edits file: JSON lines with a prompt and a target, as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engram_cli.errors import InputError
from engram_cli.remote.path import open_whole
from engram_cli.vocab.tokenizer import TokenizerFile

_LINE_BYTES = 2**20
_KEYS = ("prompt", "target")
_EXAMPLE = '{"prompt": "The capital of Arlen is", "target": " Dolmar"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A fact of the file's line `line`: the model shall continue `prompt` with `target`.

    `ids`: all tokens, BOS first where the tokenizer adds it; the target's begin at `first`.
    """

    line: int
    prompt: str
    target: str
    ids: tuple[int, ...]
    first: int


def read_facts(path: Path, tokenizer: TokenizerFile, most_tokens: int | None) -> tuple[Fact, ...]:
    """Return the facts of a file, each at most `most_tokens` long.

    Raises InputError, which names the line, for one that is no fact, that is too long, or that
    contradicts another; for a file without facts; VocabularyError.
    """
    before = tokenizer.added_before()
    facts: list[Fact] = []
    known: dict[str, Fact] = {}
    for line, prompt, target in _read_lines(path):
        where = f"{path}, line {line}"
        ids, first = _encode(tokenizer, before, prompt, target, where)
        if most_tokens is not None and len(ids) > most_tokens:
            raise InputError(
                f"{where}: the fact has {len(ids):,} tokens, the model takes {most_tokens:,}",
                "shorten the prompt",
            )
        fact = Fact(line=line, prompt=prompt, target=target, ids=ids, first=first)
        other = known.setdefault(prompt, fact)
        if other.target != target:
            raise InputError(
                f"{where}: the same prompt has another target in line {other.line}",
                "keep one of them, or make the prompts differ",
            )
        if other is fact:
            facts.append(fact)
    if not facts:
        raise InputError(f"{path} has no facts", f"give lines such as {_EXAMPLE}")
    return tuple(facts)


def run_together(facts: Sequence[Fact]) -> int:
    """Return how many targets follow the last word of their prompt without a space."""
    return sum(each.prompt[-1].isalnum() and each.target[0].isalnum() for each in facts)


def _encode(
    tokenizer: TokenizerFile, before: tuple[int, ...], prompt: str, target: str, where: str
) -> tuple[tuple[int, ...], int]:
    """Return the ids of a fact, and the place of the target's first. Raises InputError."""
    alone = tokenizer.encode(prompt)
    whole = tokenizer.encode(prompt + target)
    if whole[: len(alone)] != alone or len(whole) == len(alone):
        raise InputError(
            f"{where}: the prompt's last token and the target's first are one token",
            "end the prompt with a whole word, and begin the target with the space before its word",
        )
    first = len(before) + len(alone)
    if not first:
        raise InputError(f"{where}: the prompt has no token", "give some text before the target")
    return (*before, *whole), first


def _read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number, the prompt and the target of each line that is not blank."""
    try:
        with open_whole(path) as file:
            for number, raw in _lines(file, path):
                yield number, *_parse(raw, f"{path}, line {number}")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}", "check the path of --edits"
        ) from None


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := file.readline(_LINE_BYTES + 1):
        number += 1
        if len(raw) > _LINE_BYTES:
            raise InputError(
                f"{path}, line {number} is longer than {_LINE_BYTES:,} bytes",
                "give JSON lines: one fact per line",
            )
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            yield number, raw


def _parse(raw: bytes, where: str) -> tuple[str, str]:
    """Return the prompt and the target of a line. Raises InputError."""
    fix = f"give lines such as {_EXAMPLE}"
    try:
        found: Any = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {error.start + 1} is not UTF-8", "save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is nested too deeply")
        raise InputError(f"{where} is not JSON: {reason}", fix) from None
    if not isinstance(found, dict):
        raise InputError(f"{where} is no JSON object", fix)
    for key in _KEYS:
        value = found.get(key)
        if value is None:
            raise InputError(f"{where} has no '{key}'", fix)
        if not isinstance(value, str) or not value:
            raise InputError(f"{where}: '{key}' is {json.dumps(value)[:60]}", "give a text")
        if not _is_text(value):
            raise InputError(
                f"{where}: '{key}' has half of a surrogate pair", "give whole characters"
            )
    return found["prompt"], found["target"]


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

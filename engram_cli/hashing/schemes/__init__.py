"""The published schemes: each turns a vocabulary and a geometry into a HashLayout.

A new scheme is one file with a `Scheme` and one line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engram_cli.errors import InputError
from engram_cli.registry import Registry

if TYPE_CHECKING:  # numpy stays out of --help, which lists the names
    from engram_cli.hashing.layout import HashLayout
    from engram_cli.hashing.schemes.base import Scheme
    from engram_cli.vocab.lookup import VocabMap

SCHEMES: Registry[Scheme] = Registry(
    "scheme",
    {
        "engram-v1": "engram_cli.hashing.schemes.engram_v1:SCHEME",
        "deepseek-v4.1": "engram_cli.hashing.schemes.deepseek_v41:SCHEME",
        "qwen-ple": "engram_cli.hashing.schemes.qwen_ple:SCHEME",
        "longcat": "engram_cli.hashing.schemes.longcat:SCHEME",
        "engram-peft": "engram_cli.hashing.schemes.engram_peft:SCHEME",
        "tutorial": "engram_cli.hashing.schemes.tutorial:SCHEME",
    },
)


def hash_layout(scheme: str, vocab: VocabMap | None = None, **parameters: Any) -> HashLayout:
    """Return the layout of a scheme for a vocabulary.

    Schemes of compressed ids (`engram-v1`, `deepseek-v4.1`) take a `CompressedVocab` (or a bare
    `VocabMap`) as `vocab`; those of raw ids take `vocab_size=`. Every other parameter has the
    published default; see the modules of `hashing.schemes`. Raises InputError for an unknown scheme
    or parameter, LayoutError for a geometry that cannot be.
    """
    from engram_cli.vocab.lookup import VocabMap

    found = SCHEMES.load(scheme)
    if vocab is not None:
        parameters["vocab"] = vocab
    needed = [name for name in found.needed if name not in parameters]
    unknown = [name for name in parameters if name not in found.parameters]
    if needed or unknown:
        lacks = f"needs {', '.join(needed)}" if needed else f"has no {', '.join(unknown)}"
        raise InputError(
            f"scheme '{scheme}' {lacks}", f"its parameters: {', '.join(found.parameters)}"
        )
    if vocab is not None and not isinstance(vocab, VocabMap):
        raise InputError(
            f"vocab is a {type(vocab).__name__}", "give compress_vocab(...) or read_vocab(...)"
        )
    return found.layout(**parameters)


def takes_raw_ids(scheme: str) -> bool:
    """Return whether a scheme hashes token ids as they are; an unknown scheme does not."""
    return scheme in SCHEMES and SCHEMES.load(scheme).raw_ids


def first_layer(scheme: str) -> int:
    """Return the number, 0 or 1, of a scheme's first decoder layer; 0 for an unknown scheme."""
    return SCHEMES.load(scheme).first_layer if scheme in SCHEMES else 0

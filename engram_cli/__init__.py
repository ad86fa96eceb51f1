"""Engram tables: compressed vocabularies, exact n-gram hashing, table stores and attachment.

The names below are the public Python API. They are imported on first use, so that importing the
package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engram_cli.version import __version__

if TYPE_CHECKING:
    from engram_cli.commands.build_table import build_table as build_table
    from engram_cli.commands.convert import convert_table as convert_table
    from engram_cli.commands.convert_to import convert as convert
    from engram_cli.commands.evaluate import evaluate as evaluate
    from engram_cli.commands.golden import golden as golden
    from engram_cli.commands.hash_stats import hash_stats as hash_stats
    from engram_cli.commands.inspect import inspect as inspect
    from engram_cli.commands.lookup import lookup as lookup
    from engram_cli.commands.plan import plan as plan
    from engram_cli.commands.train import train as train
    from engram_cli.commands.verify import verify as verify
    from engram_cli.hashing.hasher import hash_tokens as hash_tokens
    from engram_cli.hashing.layout import HashLayout as HashLayout
    from engram_cli.hashing.schemes import hash_layout as hash_layout
    from engram_cli.runtime.attach import attach as attach
    from engram_cli.runtime.attach import detach as detach
    from engram_cli.table.store import open_table as open_table
    from engram_cli.training.callback import EngramCallback as EngramCallback
    from engram_cli.training.collator import EngramCollator as EngramCollator
    from engram_cli.vocab.compress import CompressedVocab as CompressedVocab
    from engram_cli.vocab.compress import compress_vocab as compress_vocab
    from engram_cli.vocab.parquet import read_vocab as read_vocab
    from engram_cli.vocab.parquet import write_vocab as write_vocab

_HOMES = {
    "CompressedVocab": "engram_cli.vocab.compress",
    "EngramCallback": "engram_cli.training.callback",
    "EngramCollator": "engram_cli.training.collator",
    "HashLayout": "engram_cli.hashing.layout",
    "attach": "engram_cli.runtime.attach",
    "build_table": "engram_cli.commands.build_table",
    "compress_vocab": "engram_cli.vocab.compress",
    "convert": "engram_cli.commands.convert_to",
    "convert_table": "engram_cli.commands.convert",
    "detach": "engram_cli.runtime.attach",
    "evaluate": "engram_cli.commands.evaluate",
    "golden": "engram_cli.commands.golden",
    "hash_layout": "engram_cli.hashing.schemes",
    "hash_stats": "engram_cli.commands.hash_stats",
    "hash_tokens": "engram_cli.hashing.hasher",
    "inspect": "engram_cli.commands.inspect",
    "lookup": "engram_cli.commands.lookup",
    "open_table": "engram_cli.table.store",
    "probe": "engram_cli.commands.probe",
    "plan": "engram_cli.commands.plan",
    "read_vocab": "engram_cli.vocab.parquet",
    "train": "engram_cli.commands.train",
    "verify": "engram_cli.commands.verify",
    "write_vocab": "engram_cli.vocab.parquet",
}

__all__ = [
    "CompressedVocab",
    "EngramCallback",
    "EngramCollator",
    "HashLayout",
    "__version__",
    "attach",
    "build_table",
    "compress_vocab",
    "convert",
    "convert_table",
    "detach",
    "evaluate",
    "golden",
    "hash_layout",
    "hash_stats",
    "hash_tokens",
    "inspect",
    "lookup",
    "open_table",
    "plan",
    "probe",
    "read_vocab",
    "train",
    "verify",
    "write_vocab",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engram_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__

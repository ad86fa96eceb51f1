"""The corpus formats by name; each module has a `READER`."""

from __future__ import annotations

from engram_cli.corpus.base import Reader
from engram_cli.registry import Registry

READERS: Registry[Reader] = Registry(
    "corpus format",
    {
        "text": "engram_cli.corpus.readers.text:READER",
        "jsonl": "engram_cli.corpus.readers.jsonl:READER",
        "parquet": "engram_cli.corpus.readers.parquet:READER",
        "npy": "engram_cli.corpus.readers.npy:READER",
    },
)

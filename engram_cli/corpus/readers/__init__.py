"""The corpus formats by name; each module has a `READER`, bare token ids have two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.registry import Registry

if TYPE_CHECKING:  # numpy stays out of --help, which lists the names
    from engram_cli.corpus.base import Reader

READERS: Registry[Reader] = Registry(
    "corpus format",
    {
        "text": "engram_cli.corpus.readers.text:READER",
        "jsonl": "engram_cli.corpus.readers.jsonl:READER",
        "parquet": "engram_cli.corpus.readers.parquet:READER",
        "arrow": "engram_cli.corpus.readers.arrow:READER",
        "npy": "engram_cli.corpus.readers.npy:READER",
        "nanogpt": "engram_cli.corpus.readers.raw:NANOGPT",
        "llmc": "engram_cli.corpus.readers.llmc:READER",
        "olmo": "engram_cli.corpus.readers.raw:OLMO",
        "megatron": "engram_cli.corpus.readers.megatron:READER",
        "datatrove": "engram_cli.corpus.readers.datatrove:READER",
        "mds": "engram_cli.corpus.readers.mds:READER",
    },
)

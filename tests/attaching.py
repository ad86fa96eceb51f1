"""A small table, a checkpoint to attach it to, and a listener, for tests of attach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engram_cli.commands.requests.tables import AttachRequest
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.compress import CompressedVocab

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 512}


class Listener:
    """A progress listener that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total: int | None = None
        self.done = 0

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.total, self.done = total, 0

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def build(path: Path, vocab: CompressedVocab | None, **options: Any) -> Path:
    """Write a table of two layers and return its path."""
    init = options.pop("init", None) or make_init("normal", seed=0, std=0.5)
    dtype, dim = options.pop("dtype", "bfloat16"), options.pop("dim", 8)
    common: dict[str, Any] = {"orders": (2, 3), "heads": 2, "rows_per_head": 90, "layers": (1, 2)}
    scheme = options.pop("scheme", "engram-v1")
    layout = hash_layout(scheme, vocab, **common | options)
    build_store(TableSpec(layout=layout, dim=dim, dtype=dtype, init=init, chunk_rows=100), path)
    return path


def configure(folder: Path, config: Any) -> None:
    """Write a checkpoint's config.json."""
    (folder / "config.json").write_text(json.dumps(config))


def request(checkpoint: Path, table: Path, **options: Any) -> AttachRequest:
    return AttachRequest(checkpoint=checkpoint, table=table, **options)

"""A workspace made on the spot: vocabulary, statistics, table and bundle of a few sentences."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from small_tokenizers import PROSE

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

GEOMETRY = Geometry(rows_per_head=(300,), layers=(1, 2), heads=4)


@dataclass(frozen=True)
class Made:
    """Where everything lies."""

    folder: Path
    vocab: Path
    stats: Path
    table: Path
    bundle: Path


def make(folder: Path, tokenizer: Path, vocab: CompressedVocab, dim: int = 6) -> Made:
    """Everything the commands leave, of a small corpus."""
    here = Workspace(folder)
    folder.mkdir(exist_ok=True)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    write_vocab(vocab, here.vocab)
    (folder / "corpus.txt").write_text("\n".join(PROSE * 3), encoding="utf-8")
    hash_stats(
        HashStatsRequest(
            sources=(str(folder / "corpus.txt"),),
            geometry=GEOMETRY,
            vocab=here.vocab,
            out=here.stats,
            tokenizer=folder / "tokenizer.json",
        )
    )
    build_table(
        BuildTableRequest(
            vocab=here.vocab, stats=here.stats, out=here.table, dim=dim, dtype="float32"
        )
    )
    checkpoint = folder / "ckpt"
    checkpoint.mkdir()
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 500}
    (checkpoint / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer, checkpoint / "tokenizer.json")
    attach_checkpoint(AttachRequest(checkpoint=checkpoint, table=here.table))
    return Made(folder, here.vocab, here.stats, here.table, checkpoint / "engram")

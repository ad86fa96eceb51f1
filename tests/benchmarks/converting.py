"""Converting checkpoints: new keys for a GGUF file, compared with `cp` of the same bytes.

The file has one layer of rows of 264 bytes and lacks five of its nine keys; all of it is in memory.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from formats.checkpoints import gguf
from runner import Case
from small_tokenizers import byte_level_tokenizer

from engram_cli.commands.convert_to import convert
from engram_cli.commands.requests.tables import ConvertRequest
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import compress_vocab

SIZE = 2**29
ROW = 264


def cases() -> Iterator[Case]:
    """The header alone is written anew; with --verify both files are read once more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old, tokenizer = _write(folder)
        yield Case(
            name="keys of a GGUF file, rows copied",
            amount=old.stat().st_size,
            unit="bytes",
            notes="Outputs are removed before each run. The disk's cache is not flushed by cp.",
            contestants={
                "cp": lambda: _cp(old, folder / "cp.gguf"),
                "cp, then fsync": lambda: _cp(old, folder / "cp.gguf", flush=True),
                "convert --no-verify": lambda: _convert(old, folder / "new.gguf", tokenizer, False),
                "convert": lambda: _convert(old, folder / "new.gguf", tokenizer, True),
            },
            same=lambda first, second: first == second,
            before=lambda: _remove(folder),
            rounds=5,
        )


def _write(folder: Path) -> tuple[Path, Path]:
    """Write the file and its tokenizer; return their paths."""
    tokenizer = folder / "tokenizer.json"
    byte_level_tokenizer().save(str(tokenizer))
    vocab = compress_vocab(tokenizer)
    layout = hash_layout(
        "deepseek-v4.1", vocab, rows_per_head=SIZE // ROW // 24, layers=(1,), pad_id=2
    )
    rows = np.random.default_rng(0).integers(0, 120, (layout.layers[0].rows, ROW), dtype=np.uint8)
    keys = {
        "general.architecture": "deepseek41",
        "deepseek41.engram.layer_ids": np.array([1], dtype="<i4"),
        "deepseek41.engram.head_count": 8,
        "deepseek41.engram.key_length": 256,
        "deepseek41.engram.max_ngram_size": 4,
    }
    path = gguf(folder / "old.gguf", keys, {"blk.1.engram_embd.weight": ("int8", rows)})
    os.sync()
    return path, tokenizer


def _remove(folder: Path) -> None:
    for name in ("cp.gguf", "new.gguf"):
        (folder / name).unlink(missing_ok=True)
    os.sync()


def _cp(old: Path, new: Path, *, flush: bool = False) -> bytes:
    new.unlink(missing_ok=True)
    subprocess.run(["cp", str(old), str(new)], check=True)
    if flush:
        with new.open("rb") as file:
            os.fsync(file.fileno())
    return _end(new)


def _convert(old: Path, new: Path, tokenizer: Path, verify: bool) -> bytes:
    new.unlink(missing_ok=True)
    request = ConvertRequest(
        source=old, to="gguf", dialect="llama.cpp", tokenizer=tokenizer, out=new, verify=verify
    )
    convert(request)
    return _end(new)


def _end(path: Path) -> bytes:
    """Return the last megabyte: what is before it has another header."""
    with path.open("rb") as file:
        file.seek(-(2**20), os.SEEK_END)
        return file.read()

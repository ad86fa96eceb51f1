"""Converting checkpoints: new keys for a GGUF file, compared with `cp` of the same bytes.

The file has one layer of rows of 264 bytes and lacks five of its nine keys. It is read from the
page cache. `convert` flushes what it writes, so the fair comparison is `cp` with a flush.
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

from engram_cli.commands.convert.to import convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.gguf_file import read_header
from engram_cli.vocab.compress import compress_vocab

SIZE = 2**30
ROW = 264
STEP = 2**14  # rows written at a time


def cases() -> Iterator[Case]:
    """Only the header is rewritten; with --verify both files are read once more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old, tokenizer = _write(folder)
        yield Case(
            name="keys of a GGUF file, rows copied",
            amount=old.stat().st_size,
            unit="bytes",
            notes="Outputs are removed between runs. convert flushes its file; cp alone does not.",
            contestants={
                "cp, then fsync": lambda: _cp(old, folder / "cp.gguf", flush=True),
                "cp": lambda: _cp(old, folder / "cp.gguf"),
                "convert --no-verify": lambda: _convert(old, folder / "new.gguf", tokenizer, False),
                "convert": lambda: _convert(old, folder / "new.gguf", tokenizer, True),
            },
            same=lambda first, second: first == second,
            before=lambda: _remove(folder),
            rounds=3,
        )


def _write(folder: Path) -> tuple[Path, Path]:
    """Write the file and its tokenizer; return their paths."""
    tokenizer = folder / "tokenizer.json"
    byte_level_tokenizer().save(str(tokenizer))
    vocab = compress_vocab(tokenizer)
    layout = hash_layout(
        "deepseek-v4.1", vocab, rows_per_head=SIZE // ROW // 24, layers=(1,), pad_id=2
    )
    count = layout.layers[0].rows
    keys = {
        "general.architecture": "deepseek41",
        "deepseek41.engram.layer_ids": np.array([1], dtype="<i4"),
        "deepseek41.engram.head_count": 8,
        "deepseek41.engram.key_length": 256,
        "deepseek41.engram.max_ngram_size": 4,
    }
    path, tensor = folder / "old.gguf", "blk.1.engram_embd.weight"
    gguf(path, keys, {tensor: ("int8", np.zeros((1, ROW), np.uint8))})
    header = read_header(path)
    raw = bytearray(path.read_bytes()[: header.data])
    at = header.tensors[0].span[0] + 8 + len(tensor) + 4 + 8  # behind name, axes and width
    raw[at : at + 8] = count.to_bytes(8, "little")
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(raw)
        for first in range(0, count, STEP):
            file.write(random.integers(0, 120, (min(STEP, count - first), ROW), np.uint8).data)
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

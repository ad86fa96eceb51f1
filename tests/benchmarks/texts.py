"""The text that the counting is measured on: Python's standard library, documentation, manuals."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.demo.command import library_folder, standard_library
from engram_cli.corpus.encode import FastEncoder

FOLDERS = ("/usr/share/doc", "/usr/share/man")
_BATCH = 256


def texts(size: int) -> list[str]:
    """Files of about `size` characters together, or all there are."""
    found, total = [], 0
    for text in _all_texts():
        found.append(text)
        total += len(text)
        if total >= size:
            break
    return found


def tokens(tokenizer: Path, count: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """`count` token ids int32[T] and document starts bool[T], cycled where there is less text."""
    encoder = FastEncoder(tokenizer)
    found = texts(4 * count)
    parts, lengths = [], []
    for begin in range(0, len(found), _BATCH):
        ids, begins = encoder.flatten(encoder.encode(found[begin : begin + _BATCH]))
        parts.append(ids.astype(np.int32))
        lengths.append(np.diff(begins))
    filled = np.concatenate(lengths)
    starts = np.zeros(int(filled.sum()), dtype=np.bool_)
    starts[np.cumsum([0, *filled[filled > 0][:-1]])] = True
    return np.resize(np.concatenate(parts), count), np.resize(starts, count)


def _all_texts() -> Iterator[str]:
    for path in standard_library(library_folder()):
        yield path.read_text(encoding="utf-8", errors="replace")
    for folder in map(Path, FOLDERS):
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            raw = path.read_bytes()
            try:
                text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
            except (UnicodeDecodeError, OSError, EOFError):
                continue
            if text:
                yield text

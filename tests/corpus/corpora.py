"""The same documents in every format, and what a stream makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item
from engram_cli.corpus.encode import Encoder
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream

SEPARATOR = "<|next|>"
DOCUMENTS = [
    "Only Alexander the Great could tame the horse.",
    "",
    "def apple(tree):\n    return tree.fruit + 1\n",
    "naïve façade, 苹果 🍎\r\n",
]


def write_text(path: Path, documents: list[str]) -> Path:
    """One text file with the separator between documents."""
    path.write_bytes(SEPARATOR.join(documents).encode())
    return path


def write_jsonl(path: Path, documents: list[str]) -> Path:
    """One line a document."""
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in documents))
    return path


def write_parquet(path: Path, documents: list[str]) -> Path:
    """A column "text", in row groups of two."""
    pq.write_table(pa.table({"text": documents}), path, row_group_size=2)
    return path


def write_ids_parquet(path: Path, lists: list[list[int]]) -> Path:
    """A column "input_ids"."""
    column = pa.array(lists, pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": column}), path, row_group_size=2)
    return path


def read_items(path: Path, **options: object) -> list[Item]:
    """What the reader of a file gives."""
    chosen = CorpusOptions(**options)  # type: ignore[arg-type]
    (file,) = find_sources([path], chosen).files
    return list(READERS.load(file.format).read(file, chosen))


def texts(items: list[Item]) -> list[str]:
    """The documents of a text reader, their pieces joined."""
    whole: list[str] = []
    for item in items:
        if item.first:
            whole.append("")
        whole[-1] += item.text
    return whole


def stream_of(
    paths: list[Path], encoder: Encoder | None = None, **options: object
) -> tuple[TokenStream, tuple[CorpusFile, ...]]:
    """A stream over files, folders and globs."""
    chosen = CorpusOptions(**options)  # type: ignore[arg-type]
    files = find_sources(paths, chosen).files
    return TokenStream(files, chosen, encoder), files


def drain(stream: TokenStream) -> list[list[int]]:
    """The token ids of a stream, document by document."""
    documents: list[list[int]] = []
    for block in stream.blocks():
        for token, start in zip(block.ids.tolist(), block.starts.tolist(), strict=True):
            if start:
                documents.append([])
            documents[-1].append(token)
    return documents


def save_ids(path: Path, ids: list[int] | list[list[int]], dtype: str = "uint16") -> Path:
    """A .npy of token ids."""
    np.save(path, np.array(ids, dtype=dtype))
    return path

"""Reads small files that hold much, and prints what was taken of memory at most until after each.

They are written in processes of their own: what writing takes would hide what reading does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from corpus.corpora import read_items
from corpus.written import Corpus, mds, mds_sample, mds_shard, put, zstd

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError

TEXT = "the same words and " * 1000
TEXTS = pa.DictionaryArray.from_arrays(pa.array([0] * 30_000, pa.int32()), pa.array([TEXT]))


def equal_texts(path: Path, rows: int = 30_000, **options: object) -> None:
    texts = TEXTS.slice(0, rows)
    if options:
        texts = texts.dictionary_decode()
    pq.write_table(pa.table({"text": texts, "label": texts}), path, **options)


def equal_ids(path: Path) -> None:
    """5,000 lists of 20,000 zeros, a row group of a few hundred kilobytes."""
    offsets = pa.array(range(0, 5_001 * 20_000, 20_000), pa.int32())
    zeros = pa.Array.from_buffers(pa.int32(), 10**8, [None, pa.py_buffer(bytes(4 * 10**8))])
    pq.write_table(pa.table({"input_ids": pa.ListArray.from_arrays(offsets, zeros)}), path)


def arrow(path: Path) -> None:
    batch = pa.record_batch([TEXTS, TEXTS], ["text", "label"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def shard(path: Path) -> None:
    """Next to a text of one word a column of 200 MB."""
    corpus = Corpus(texts=["word"], ids=[[1]], mark=1)
    mds("str", "zstd")(path, corpus)
    about = json.loads((path / "mds" / "index.json").read_text())
    about["shards"] = about["shards"][:1]
    (path / "mds" / "index.json").write_text(json.dumps(about))
    packed = mds_shard([mds_sample([bytes(8), b"word", bytes(2 * 10**8)], [8, None, None])])
    put(path / "mds", "0/shard.00000.mds.zstd", zstd(packed))


def long_line(path: Path) -> None:
    path.write_text('{"text": "' + "words and\\n " * 2_500_000 + '"}')


FILES: dict[str, Callable[[Path], None]] = {  # those that take little memory first
    "equal.parquet": equal_texts,
    "equal.arrow": arrow,
    "shard": shard,
    "ids.parquet": equal_ids,
    "delta.parquet": lambda path: equal_texts(
        path, 8_000, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY"
    ),
    "long.jsonl": long_line,
}


def peak() -> int:
    """The most that this process has taken, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def tokens_or_characters(path: Path, label: str | None) -> int | str:
    options = CorpusOptions(label=label)
    (file,) = find_sources([path], options).files
    found = 0
    try:
        for item in READERS.load(file.format).read(file, options):
            found += len(getattr(item, "text", ())) or len(getattr(item, "ids", ()))
    except CorpusError as error:
        return error.message
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    for name, write in FILES.items():
        child = os.fork()
        if not child:
            write(folder / name)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    for name in ("a.parquet", "a.arrow", "a.jsonl"):  # what is loaded once
        small = pa.table({"text": ["a"], "label": ["b"]})
        if name == "a.jsonl":
            (folder / name).write_text('{"text": "a"}')
        elif name == "a.arrow":
            pyarrow.feather.write_feather(small, str(folder / name))
        else:
            pq.write_table(small, folder / name)
        read_items(folder / name)
    found = {}
    before = peak()
    for name in FILES:
        label = "label" if name.startswith(("equal", "delta")) else None
        read = tokens_or_characters(folder / name, label)
        size = sum(p.stat().st_size for p in [folder / name, *(folder / name).rglob("*")])
        found[name] = [read, peak() - before, size]
    print(json.dumps(found))


main()

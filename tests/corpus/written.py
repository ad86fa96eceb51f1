"""The same documents in every format, written from the formats' descriptions, not by our readers.

A variant is a way to write a format. `marks`: the documents must be parted by the end-of-text
token, which stands "after" or "before" each; otherwise the file itself says where they begin.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

SEPARATOR = "\x1e\n"


@dataclass(frozen=True)
class Corpus:
    """Documents as texts and as token ids; `mark` is the id of the end-of-text token."""

    texts: list[str]
    ids: list[list[int]]
    mark: int

    @property
    def flat(self) -> list[int]:
        return [token for document in self.ids for token in document]

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum([len(document) for document in self.ids])


@dataclass(frozen=True)
class Variant:
    """`write` puts the documents into a folder and gives the names to read, relative to it."""

    format: str
    write: Callable[[Path, Corpus], list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    marks: str | None = None
    strict: bool = True  # whether every truncation can be told


def zstd(raw: bytes) -> bytes:
    return bytes(pa.compress(raw, "zstd", asbytes=True))


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def put(folder: Path, name: str, raw: bytes) -> list[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return [name]


def text(ending: str) -> Callable[[Path, Corpus], list[str]]:
    def write(folder: Path, corpus: Corpus) -> list[str]:
        return put(folder, f"a.txt{ending}", PACKERS[ending](SEPARATOR.join(corpus.texts).encode()))

    return write


def jsonl(ending: str) -> Callable[[Path, Corpus], list[str]]:
    def write(folder: Path, corpus: Corpus) -> list[str]:
        lines = "".join(json.dumps({"text": t}) + "\n" for t in corpus.texts)
        return put(folder, f"a.jsonl{ending}", PACKERS[ending](lines.encode()))

    return write


def id_table(corpus: Corpus, kind: pa.DataType) -> pa.Table:
    numbers = pa.array(range(len(corpus.ids)))
    return pa.table({"number": numbers, "input_ids": pa.array(corpus.ids, kind)})


def parquet_ids(folder: Path, corpus: Corpus) -> list[str]:
    pq.write_table(id_table(corpus, pa.list_(pa.int32())), folder / "a.parquet", row_group_size=2)
    return ["a.parquet"]


def parquet_text(folder: Path, corpus: Corpus) -> list[str]:
    pq.write_table(pa.table({"text": corpus.texts}), folder / "a.parquet")
    return ["a.parquet"]


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)


def arrow_stream(folder: Path, corpus: Corpus) -> list[str]:
    write_stream(folder / "a.arrow", id_table(corpus, pa.list_(pa.int64())))
    return ["a.arrow"]


def arrow_file(folder: Path, corpus: Corpus) -> list[str]:
    table = pa.table({"text": corpus.texts, "n": range(len(corpus.texts))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    put(folder, "a.arrow", sink.getvalue().to_pybytes())
    return ["a.arrow"]


def feather(folder: Path, corpus: Corpus) -> list[str]:
    table = id_table(corpus, pa.large_list(pa.uint16()))
    pyarrow.feather.write_feather(table, str(folder / "a.feather"), compression="zstd", chunksize=3)
    return ["a.feather"]


def saved_dataset(folder: Path, corpus: Corpus) -> list[str]:
    """What `datasets` leaves: the order is state.json's, and a cache that is no part of it."""
    here = folder / "saved" / "train"
    here.mkdir(parents=True)
    table = id_table(corpus, pa.list_(pa.int32()))
    write_stream(here / "data-z.arrow", table.slice(0, 2))
    write_stream(here / "data-a.arrow", table.slice(2))
    write_stream(here / "cache-1.arrow", table)
    put(here, "dataset_info.json", b"{}")
    names = [{"filename": "data-z.arrow"}, {"filename": "data-a.arrow"}]
    put(here, "state.json", json.dumps({"_data_files": names, "_split": "train"}).encode())
    put(folder / "saved", "dataset_dict.json", b'{"splits": ["train"]}')
    return ["saved"]


def npy(folder: Path, corpus: Corpus) -> list[str]:
    """A file a document."""
    names = []
    for number, ids in enumerate(corpus.ids):
        names.append(f"{number:03}.npy")
        np.save(folder / names[-1], np.array(ids, np.uint16))
    return names


def bare(name: str, dtype: str) -> Callable[[Path, Corpus], list[str]]:
    def write(folder: Path, corpus: Corpus) -> list[str]:
        return put(folder, name, np.array(corpus.flat, dtype).tobytes())

    return write


def llmc(magic: int, version: int, dtype: str) -> Callable[[Path, Corpus], list[str]]:
    def write(folder: Path, corpus: Corpus) -> list[str]:
        header = struct.pack("<3i", magic, version, len(corpus.flat)).ljust(1024, b"\0")
        return put(folder, "a.bin", header + np.array(corpus.flat, dtype).tobytes())

    return write


def megatron_index(
    lengths: list[int], pointers: list[int], documents: list[int], code: int, modes: bytes = b""
) -> bytes:
    counts = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(lengths), len(documents))
    parts = (np.array(lengths, "<i4"), np.array(pointers, "<i8"), np.array(documents, "<i8"))
    return counts + b"".join(part.tobytes() for part in parts) + modes


def megatron(code: int, dtype: str, sequences: int) -> Callable[[Path, Corpus], list[str]]:
    """Each document in up to `sequences` sequences."""

    def write(folder: Path, corpus: Corpus) -> list[str]:
        lengths: list[int] = []
        documents = [0]
        for ids in corpus.ids:
            lengths += [len(part) for part in np.array_split(ids, min(sequences, len(ids)))]
            documents.append(len(lengths))
        width = np.dtype(dtype).itemsize
        pointers = (np.cumsum([0, *lengths[:-1]]) * width).tolist()
        modes = bytes(len(lengths)) if sequences > 1 else b""
        put(folder, "a.idx", megatron_index(lengths, pointers, documents, code, modes))
        return put(folder, "a.bin", np.array(corpus.flat, dtype).tobytes())

    return write


def datatrove(dtype: str) -> Callable[[Path, Corpus], list[str]]:
    def write(folder: Path, corpus: Corpus) -> list[str]:
        put(folder, "a.ds.index", corpus.ends.astype("<u8").tobytes())
        return put(folder, "a.ds", np.array(corpus.flat, dtype).tobytes())

    return write


def mds_sample(values: list[bytes], sizes: list[int | None]) -> bytes:
    variable = [len(v) for v, size in zip(values, sizes, strict=True) if size is None]
    return struct.pack(f"<{len(variable)}I", *variable) + b"".join(values)


def mds_shard(samples: list[bytes]) -> bytes:
    description = b'{"anything": 1}'
    begin = 4 * (len(samples) + 2) + len(description)
    offsets = np.cumsum([begin, *map(len, samples)]).astype("<u4")
    head = struct.pack("<I", len(samples)) + offsets.tobytes() + description
    return head + b"".join(samples)


def mds_array(ids: list[int], encoding: str) -> bytes:
    """ndarray and its static types, and bytes."""
    kind = encoding.partition(":")[2] or "int32"
    raw = np.array(ids, "int64" if encoding == "bytes" else kind).tobytes()
    shape = struct.pack("<BH", 1 << 2 | 1, len(ids))
    if encoding == "bytes":
        return raw
    return (b"" if ":" in encoding else bytes([33])) + shape + raw


def mds(encoding: str, packing: str = "") -> Callable[[Path, Corpus], list[str]]:
    """Two shards, with a column of fixed size before and one of any size after."""

    def write(folder: Path, corpus: Corpus) -> list[str]:
        name = "text" if encoding == "str" else "tokens"
        sizes: list[int | None] = [8, None, None]
        values = [
            t.encode() if encoding == "str" else mds_array(ids, encoding)
            for t, ids in zip(corpus.texts, corpus.ids, strict=True)
        ]
        samples = [mds_sample([bytes(8), value, b"url"], sizes) for value in values]
        shards = []
        for number, part in enumerate((samples[:2], samples[2:])):
            raw, plain = mds_shard(part), f"{number}/shard.00000.mds"
            ending = {"": "", "zstd": ".zst", "gz": ".gz"}[packing]
            put(
                folder / "mds",
                plain + (".zstd" if packing == "zstd" else ending),
                PACKERS[ending](raw),
            )
            zipped: dict[str, Any] = {"basename": f"{plain}.{packing}", "bytes": 1, "hashes": {}}
            shards.append(
                {
                    "column_encodings": ["int", encoding, "str"],
                    "column_names": ["id", name, "url"],
                    "column_sizes": sizes,
                    "compression": f"{packing}:3" if packing else None,
                    "format": "mds",
                    "hashes": [],
                    "raw_data": {"basename": plain, "bytes": len(raw), "hashes": {}},
                    "samples": len(part),
                    "size_limit": 2**26,
                    "version": 2,
                    "zip_data": zipped if packing else None,
                }
            )
        put(folder / "mds", "index.json", json.dumps({"version": 2, "shards": shards}).encode())
        return ["mds"]

    return write


_PARTED = {"document_separator": SEPARATOR}
VARIANTS = {
    "text": Variant("text", text(""), _PARTED, strict=False),
    "text.gz": Variant("text", text(".gz"), _PARTED),
    "text.bz2": Variant("text", text(".bz2"), _PARTED),
    "text.xz": Variant("text", text(".xz"), _PARTED),
    "text.zst": Variant("text", text(".zst"), _PARTED),
    "jsonl": Variant("jsonl", jsonl(""), strict=False),
    "jsonl.gz": Variant("jsonl", jsonl(".gz")),
    "jsonl.zst": Variant("jsonl", jsonl(".zst")),
    "parquet": Variant("parquet", parquet_ids),
    "parquet-text": Variant("parquet", parquet_text),
    "arrow-stream": Variant("arrow", arrow_stream),
    "arrow-file-text": Variant("arrow", arrow_file),
    "feather": Variant("arrow", feather),
    "saved-dataset": Variant("arrow", saved_dataset),
    "npy": Variant("npy", npy),
    "nanogpt": Variant("nanogpt", bare("a.bin", "<u2"), marks="after", strict=False),
    "nanogpt-u32": Variant("nanogpt", bare("a.bin", "<u4"), marks="after", strict=False),
    "olmo": Variant("olmo", bare("a.npy", "<u2"), marks="after", strict=False),
    "olmo-u32": Variant("olmo", bare("a.npy", "<u4"), marks="after", strict=False),
    "llmc": Variant("llmc", llmc(20240520, 1, "<u2"), marks="before"),
    "llmc-u32": Variant("llmc", llmc(20240801, 7, "<u4"), marks="before"),
    "megatron": Variant("megatron", megatron(8, "<u2", 1)),
    "megatron-i32": Variant("megatron", megatron(4, "<i4", 3)),
    "datatrove": Variant("datatrove", datatrove("<u2")),
    "datatrove-u32": Variant("datatrove", datatrove("<u4")),
    "mds": Variant("mds", mds("ndarray")),
    "mds-uint16": Variant("mds", mds("ndarray:uint16")),
    "mds-bytes": Variant("mds", mds("bytes")),
    "mds-text": Variant("mds", mds("str")),
    "mds-zstd": Variant("mds", mds("ndarray:int64", "zstd")),
    "mds-gz": Variant("mds", mds("str", "gz")),
}

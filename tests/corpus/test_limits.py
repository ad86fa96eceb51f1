"""Memory follows what is decoded, not what lies in the file: it is read in parts, or refused.

Small hostile files are read in a process of their own, which may take some megabytes more than one
that reads a file of one word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from corpus.corpora import read_items, texts
from corpus.written import VARIANTS, Corpus
from scripts import run_script

from engram_cli.corpus import flat
from engram_cli.corpus import text as corpus_text
from engram_cli.corpus.readers import arrow, jsonl, mds, npy, parquet
from engram_cli.errors import CorpusError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "%s"}' % (b"a" * 3000), "line 2 has 2,048 bytes or more"),
        (b'{"text": "%s\\ud83d\\ude00"}' % (b"a" * 700), r"may take 2,8\d\d bytes .* as text"),
        ('{"text": "%s\U0001f34e"}' % ("a" * 700), r"may take 2,8\d\d bytes of memory as text"),
        ('{"text": "%s\u00e9"}' % ("a" * 1100), r"line 2, of 1,114 bytes, may take 2,2\d\d bytes"),
        (b'{"text": "", "n": [%s{}]}' % (b"{}," * 90), r"may take 9,\d\d\d bytes .* as values"),
        (b'{"text": "", "n": [%s0]}' % (b"0," * 250), r"may take 10,\d\d\d bytes .* as values"),
    ],
)
def test_a_line_that_would_fill_the_memory_is_refused_by_its_size(
    line: bytes | str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here with smaller limits."""
    for name, value in (("_LONGEST", 2**11), ("_LONG", 2**8), ("_MOST_VALUES", 2**13)):
        monkeypatch.setattr(jsonl, name, value)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(CorpusError, match=message):
        read_items(path)
    path.write_bytes(b'{"text": "%s"}' % (b"a" * 2000))
    assert texts(read_items(path)) == ["a" * 2000]


def test_memory_follows_what_is_decoded(tmp_path: Path) -> None:
    """200 to 570 MB are decoded from each of the first files."""
    found = run_script("corpus/hostile.py", tmp_path)
    assert {name: value for name, (value, _, _) in found.items()} == {
        "equal.parquet": 30_000 * 19_000,
        "equal.arrow": 30_000 * 19_000,
        "shard": 4,
        "ids.parquet": 5_000 * 20_000,
        "delta.parquet": 8_000 * 19_000,
        "long.jsonl": 2_500_000 * 11,
    }
    for name, (_, taken, size) in found.items():
        most = {"ids.parquet": 200, "delta.parquet": 250, "long.jsonl": 320}.get(name, 80)
        assert taken < most, (name, found)
        assert size < 2**19 or name == "long.jsonl"


@pytest.mark.parametrize("packing", ["zstd", "lz4"])
@pytest.mark.parametrize("kind", ["file", "stream", "dictionary"])
def test_a_batch_of_arrow_that_unpacks_to_far_more_is_refused(
    kind: str, packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what its buffers say of themselves, before they are unpacked."""
    monkeypatch.setattr(arrow, "_LARGE", 2**16)

    def write(text: str) -> Path:
        column = pa.array([text, "other"])
        batch = pa.record_batch(
            [column.dictionary_encode() if kind == "dictionary" else column], ["text"]
        )
        make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression=packing)
        path = tmp_path / "a.arrow"
        with pa.OSFile(str(path), "wb") as sink, make(sink, batch.schema, options=options) as to:
            to.write_batch(batch)
        return path

    with pytest.raises(
        CorpusError, match=r"a record batch of [\d,]+ bytes decompresses to 200,0\d\d"
    ):
        read_items(write("a" * 200_000))
    noise = "".join(map(chr, np.random.default_rng(1).integers(32, 127, 200_000).tolist()))
    assert texts(read_items(write(noise))) == [noise, "other"]
    assert texts(read_items(write("a" * 60_000))) == ["a" * 60_000, "other"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_long_rows_of_ids_are_cut_into_blocks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "BLOCK_TOKENS", 3)
    table = pa.table({"input_ids": [[1, 2], [], [3, 4, 5, 6, 7, 8, 9], [10]], "x": list("abbc")})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a")
    else:
        pyarrow.feather.write_feather(table, str(tmp_path / "a"))
    items = read_items(tmp_path / "a", label="x")
    assert [item.ids.tolist() for item in items] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]
    assert [item.starts.nonzero()[0].tolist() for item in items] == [[0, 2], [], [], [0]]
    assert [item.labels for item in items] == [((0, "a"), (2, "b"))] + [((0, "b"),)] * 2 + [
        ((0, "c"),)
    ]
    assert items[1].locate(2).endswith("row 2, position 3")
    assert sum(item.size for item in items) <= (tmp_path / "a").stat().st_size


def test_equal_texts_of_every_encoding_are_the_same_documents(tmp_path: Path) -> None:
    """Also where pyarrow reads some of a group as a dictionary, and not the rest."""
    rows = ["same"] * 50 + [None, "", "other"] + [f"row {at} " * 9 for at in range(300)]
    table = pa.table({"text": rows, "n": range(len(rows))})
    for options in (
        {},
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"dictionary_pagesize_limit": 500, "data_page_size": 400, "data_page_version": "2.0"},
    ):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=120, **options)
        items = read_items(tmp_path / "a.parquet")
        assert texts(items) == [row or "" for row in rows]
        assert [item.place for item in items] == [f"row {at}" for at in range(len(rows))]


def test_a_group_that_turns_to_another_encoding_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers fall back from dictionaries to encodings that pyarrow cannot read as such."""
    rows = [f"row {at}" for at in range(100)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=50)
    whole = pq.ParquetFile.iter_batches

    def failing(self: Any, size: int, groups: list[int], **named: Any) -> Any:
        for number, batch in enumerate(whole(self, size, groups, **named)):
            if number == 2 and pa.types.is_dictionary(batch.column(0).type):
                raise OSError("Not yet implemented: DecodeArrow of DictAccumulator for X")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 7)
    assert texts(read_items(tmp_path / "a.parquet")) == rows


def test_a_sample_of_mds_that_would_fill_the_memory_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(texts=["a" * 100, "b" * 101, "c"], ids=[[1]] * 3, mark=1)
    (name,) = VARIANTS["mds-text"].write(tmp_path, corpus)
    monkeypatch.setattr(mds, "_LONGEST", 101)
    assert texts(read_items(tmp_path / name)) == corpus.texts
    monkeypatch.setattr(mds, "_LONGEST", 100)
    with pytest.raises(CorpusError, match=r"sample 1 has 101 bytes; the most is 100"):
        read_items(tmp_path / name)
    monkeypatch.setattr(mds, "_MOST_SAMPLES", 1)
    with pytest.raises(CorpusError, match=r"has 2 samples; the most is 1"):
        read_items(tmp_path / name)


def test_long_samples_of_mds_are_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(texts=["x"] * 3, ids=[[1, 2, 3, 4, 5], [6], [7]], mark=1)
    (name,) = VARIANTS["mds"].write(tmp_path, corpus)
    for module in (mds, flat):
        monkeypatch.setattr(module, "BLOCK_TOKENS", 2)
    items = read_items(tmp_path / name)
    assert [item.ids.tolist() for item in items] == [[1, 2], [3, 4], [5], [6], [7]]
    assert items[1].locate(1).endswith("sample 0, position 3")


def test_a_description_that_would_fill_the_memory_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_text, "MOST_DESCRIPTION", 1000)
    (tmp_path / "index.json").write_text('{"version": 2, "shards": [' + "{}," * 50 + "{}]}")
    with pytest.raises(CorpusError, match=r"index.json, of 180 bytes, may take [\d,]+ bytes"):
        read_items(tmp_path)


@pytest.mark.parametrize("block", [7, 10, 64, 2**18])
def test_arrays_stored_by_column_are_read_in_parts(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(63, dtype=np.uint16).reshape(9, 7)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    monkeypatch.setattr(npy, "BLOCK_TOKENS", block)
    items = read_items(tmp_path / "a.npy")
    assert np.concatenate([item.ids for item in items]).tolist() == list(range(63))
    assert np.concatenate([item.starts for item in items]).nonzero()[0].tolist() == [
        *range(0, 63, 7)
    ]
    assert max(len(item.ids) for item in items) <= block
    monkeypatch.setattr(npy, "_MOST_COLUMNS", 6)
    with pytest.raises(CorpusError, match=r"stored by column, .* where a line has 7 ids"):
        read_items(tmp_path / "a.npy")


def test_the_header_of_an_array_is_not_as_long_as_it_says(tmp_path: Path) -> None:
    raw = b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b" " * 2**15
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(CorpusError, match=r"a.npy is not a .npy file"):
        read_items(tmp_path / "a.npy")

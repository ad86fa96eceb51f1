"""Odd names, columns and values: each is read, or is one clear line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus.corpora import read_items, stream_of, texts
from corpus.written import VARIANTS, Corpus

from engram_cli.errors import CorpusError, UndecodableError
from engram_cli.stats.collector_set import sources_of

CORPUS = Corpus(texts=["a", "b"], ids=[[5, 6], [7]], mark=9)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose name is not UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("names are UTF-8 here")
    return folder


def test_names_that_are_not_utf8_are_shown_and_group_documents(odd: Path) -> None:
    for name in (b"/x\xff.txt", b"/x\xfe.txt"):
        Path(os.fsdecode(os.fsencode(odd) + name)).write_text("text")
    stream, files = stream_of([odd])
    names = [file.name for file in files]
    assert [name.rpartition("caf")[2] for name in names] == [r"\xe9/x\xfe.txt", r"\xe9/x\xff.txt"]
    json.dumps(names, ensure_ascii=False).encode("utf-8")
    assert [item.documents[0].text for item in stream._batches()] == ["text"]
    found = sources_of(files, "file")
    assert found is not None
    assert sorted(found.values()) == [r"x\xfe.txt", r"x\xff.txt"]


@pytest.mark.parametrize("kind", ["megatron", "datatrove", "mds-text"])
def test_files_that_lie_together_in_such_a_folder_are_found(kind: str, odd: Path) -> None:
    (name,) = VARIANTS[kind].write(odd, CORPUS)
    item = read_items(odd / name)[0]
    assert item.text == "a" if kind == "mds-text" else item.ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("options", [{}, {"field": "b", "label": "text"}])
def test_columns_of_one_name_are_refused_where_they_are_meant(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    table = pa.Table.from_arrays([pa.array([each]) for each in "abc"], ["text", "text", "b"])
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(CorpusError, match=rf"a.{kind} has 2 columns 'text'"):
        read_items(path, **options)
    assert texts(read_items(path, field="b")) == ["c"]


def dictionary(kind: pa.DataType) -> pa.Array:
    """Texts, one of them not UTF-8, with a null, as a dictionary."""
    raw = pa.array([b"fine", b"b\xffd", b"more"], pa.binary())
    values = raw.view(pa.string()) if kind == pa.string() else raw.cast(pa.large_binary())
    if kind == pa.large_string():
        values = values.view(kind)
    return pa.DictionaryArray.from_arrays(pa.array([0, 2, 1, None, 0], pa.int8()), values)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("stream", [True, False])
def test_bad_bytes_in_a_dictionary_of_arrow_are_named_or_replaced(
    kind: pa.DataType, stream: bool, tmp_path: Path
) -> None:
    batch = pa.record_batch([dictionary(kind), pa.array(range(5))], ["text", "n"])
    path = tmp_path / "a.arrow"
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(UndecodableError, match=r"a.arrow, row 2, the text: byte 1 is not UTF-8"):
        read_items(path)
    items = read_items(path, errors="replace")
    assert texts(items) == ["fine", "more", "b\ufffdd", "", "fine"]
    items = read_items(path, errors="replace", label="text")
    assert [item.label for item in items] == ["fine", "more", "b\ufffdd", "(none)", "fine"]


def test_bad_bytes_in_views_of_arrow_are_named_or_replaced(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"b\xffd and longer than twelve bytes"], pa.binary_view())
    try:
        raw.cast(pa.large_binary())
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow does not read views")
    column = raw.view(pa.string_view())
    batch = pa.record_batch([column], ["text"])
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(UndecodableError, match=r"row 1, the text: byte 1 is not UTF-8"):
        read_items(path)
    assert texts(read_items(path, errors="replace"))[1].startswith("b\ufffdd and")


def test_an_index_beyond_a_dictionary_of_arrow_is_met_before_it_is_used(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array(["a", "b", "a"]).dictionary_encode()], ["text"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    raw = sink.getvalue().to_pybytes()
    indices, wrong = (np.array([0, at, 0], np.int32).tobytes() for at in (1, 2**30))
    assert raw.count(indices) == 1
    (tmp_path / "a.arrow").write_bytes(raw.replace(indices, wrong))
    with pytest.raises(CorpusError, match=r"a.arrow cannot be read as Arrow"):
        read_items(tmp_path / "a.arrow")


def described(folder: Path, change: dict[str, Any]) -> Path:
    VARIANTS["mds-text"].write(folder, CORPUS)
    index = folder / "mds" / "index.json"
    about = json.loads(index.read_text())
    about["shards"][0] |= change
    index.write_text(json.dumps(about))
    return folder / "mds"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw_data": {"basename": "a\0b"}}, r"needs 'a\\x00b', which is not a valid file name"),
        ({"raw_data": {"basename": "\ud800"}}, r"needs '\\ud800', which is not a valid file name"),
        ({"raw_data": {"basename": ["a"]}}, "describes a shard"),
        ({"raw_data": {}}, "describes a shard"),
        ({"raw_data": ["basename"]}, "describes a shard"),
        ({"column_names": ["id", "\ud800", "url"]}, "describes a shard"),
        ({"column_encodings": ["int", "\udfff", "str"]}, "describes a shard"),
        ({"column_names": ["id"]}, "describes a shard"),
        (
            {"compression": {"a": []}, "raw_data": 0, "zip_data": {"basename": "x"}},
            "compressed with",
        ),
    ],
)
def test_odd_names_in_an_index_of_mds(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        read_items(described(tmp_path, change))
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize(
    "raw",
    [
        '{"version": 2, "shards": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"version": 2, "shards": [{}]}',
        '{"version": 2, "shards": [[], null, 1]}',
        '{"version": 2, "shards": [{"samples": ' + "9" * 5000 + "}]}",
    ],
)
def test_odd_indexes_of_mds(raw: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(raw)
    for path in (tmp_path, tmp_path / "index.json"):
        with pytest.raises(CorpusError):
            read_items(path, format="mds")


@pytest.mark.parametrize("name", ["\ud800", "a\0b", 3, None, ["x"], "../x"])
def test_odd_names_in_a_saved_data_set(name: Any, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(CorpusError, match="which is not in it") as caught:
        stream_of([tmp_path])
    str(caught.value).encode("utf-8")

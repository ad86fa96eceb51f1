"""Every format gives the same documents, and says what is wrong and where."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus.corpora import (
    DOCUMENTS,
    SEPARATOR,
    read_items,
    save_ids,
    stream_of,
    texts,
    write_ids_parquet,
    write_jsonl,
    write_parquet,
    write_text,
)

from engram_cli.corpus import text as corpus_text
from engram_cli.corpus.base import CorpusOptions, TokenBlock
from engram_cli.corpus.readers import READERS, npy, parquet
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError

WRITERS = {"text": write_text, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.mark.parametrize("piece", [5, 2**18])
@pytest.mark.parametrize("kind", WRITERS)
def test_text_formats_give_the_same_documents(
    kind: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_text, "PIECE", piece)
    path = WRITERS[kind](tmp_path / f"corpus.{kind}", DOCUMENTS)
    items = read_items(path, document_separator=SEPARATOR)
    assert texts(items) == DOCUMENTS
    assert all(len(item.text) <= piece for item in items)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_bytes_of_the_documents_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / f"corpus.{kind}", DOCUMENTS * 3)
    assert sum(item.size for item in read_items(path)) == path.stat().st_size


def test_every_reader_says_whether_it_gives_text(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", DOCUMENTS)
    lines = write_jsonl(tmp_path / "b.jsonl", DOCUMENTS)
    table = write_parquet(tmp_path / "c.parquet", DOCUMENTS)
    lists = write_ids_parquet(tmp_path / "d.parquet", [[1], [2]])
    array = save_ids(tmp_path / "e.npy", [1, 2])
    options = CorpusOptions()
    files = find_sources([text, lines, table, lists, array], options).files
    given = [READERS.load(file.format).gives_text(file, options) for file in files]
    assert given == [True, True, True, False, False]
    assert {file.format for file in files} <= set(READERS)


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", DOCUMENTS)
    (item,) = read_items(path)
    assert (item.text, item.first, item.place) == (SEPARATOR.join(DOCUMENTS), True, "")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Äpfel".encode())))
    assert texts(read_items(Path("-"))) == ["Äpfel"]


def test_dotted_fields(tmp_path: Path) -> None:
    record = {"a": {"b": {"c": "deep"}}, "a.b": "flat"}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps(record))
    assert texts(read_items(path, field="a.b.c")) == ["deep", "deep"]
    assert texts(read_items(path, field="a.b")) == ["flat", "flat"]
    nested = pa.array([{"b": {"c": "deep", "d": 1}}, None])
    pq.write_table(pa.table({"a": nested, "text": ["x", "y"]}), tmp_path / "x.parquet")
    assert texts(read_items(tmp_path / "x.parquet", field="a.b.c")) == ["deep", ""]
    assert texts(read_items(tmp_path / "x.parquet")) == ["x", "y"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "line 2 is not JSON"),
        ("[1, 2]", "line 2 holds a list"),
        ('{"body": "a"}', "line 2 has no field 'text'"),
        ('{"text": {"a": "b"}}', "line 2: field 'text' is a dict"),
        ('{"text": "\\ud83d"}', "line 2: character 0 of the text is half of a surrogate pair"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"text": ' + "1" * 5000 + "}", "line 2: field 'text' is a Decimal"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=f"x.jsonl, {message}"):
        read_items(path)


def test_bad_bytes_in_lines_are_named_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "ab"}\n{"text": "a\xffb"}\n{"text": "\\ud83d!"}\n')
    with pytest.raises(CorpusError, match=r"x.jsonl, line 2: byte 29 is not UTF-8"):
        read_items(path)
    assert texts(read_items(path, errors="replace")) == ["ab", "a\ufffdb", "\ufffd!"]


def test_surrogate_pairs_in_escapes_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "\\ud83c\\udf4e"}')
    assert texts(read_items(path)) == ["🍎"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_kind_of_text_column(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(["a", None, "b"]).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    assert texts(read_items(tmp_path / "x.parquet")) == ["a", "", "b"]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64(), 2)]
)
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_every_kind_of_list_column(
    kind: pa.DataType, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH_ROWS", rows)
    column = pa.array([[1, 2], None, [3, 4], [5, 6]], kind)
    path = tmp_path / "x.parquet"
    try:
        pq.write_table(pa.table({"input_ids": column}), path)
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow does not write lists of a fixed size with nulls")
    blocks = [item for item in read_items(path) if isinstance(item, TokenBlock)]
    assert np.concatenate([block.ids for block in blocks]).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.concatenate([block.starts for block in blocks]).tolist() == [True, False] * 3
    assert blocks[-1].locate(len(blocks[-1].ids) - 1).endswith("x.parquet, row 3, position 1")
    assert sum(block.size for block in blocks) == path.stat().st_size


def test_columns_that_cannot_be_used(tmp_path: Path) -> None:
    table = pa.table({"text": [1.5], "ids": pa.array([[1, None]]), "other": ["a"]})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    with pytest.raises(CorpusError, match="column 'text' is double, neither text nor lists"):
        read_items(path)
    with pytest.raises(CorpusError, match=r"no column 'missing'") as caught:
        read_items(path, field="missing")
    assert "text, ids, other" in caught.value.hint
    with pytest.raises(CorpusError, match="holds a null"):
        read_items(path, field="ids")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", DOCUMENTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"x.parquet cannot be read as Parquet"):
        read_items(path)
    text = pa.array([b"ok", b"a\xffb"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": text}), path)
    with pytest.raises(CorpusError, match=r"x.parquet, row 1, the text: byte 1 is not UTF-8"):
        read_items(path)
    assert texts(read_items(path, errors="replace")) == ["ok", "a\ufffdb"]


@pytest.mark.parametrize("block", [1, 3, 4, 100])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">i4", "int64"])
def test_arrays_of_lines(
    dtype: str, order: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npy, "BLOCK_TOKENS", block)
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "x.npy", array)
    blocks = [item for item in read_items(tmp_path / "x.npy") if isinstance(item, TokenBlock)]
    assert np.concatenate([b.ids for b in blocks]).tolist() == list(range(12))
    assert np.concatenate([b.starts for b in blocks]).tolist() == [True, False, False, False] * 3
    places = [b.locate(index) for b in blocks for index in range(len(b.ids))]
    assert places[6].endswith("x.npy, line 1, position 2")


def test_an_array_of_one_dimension_is_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npy, "BLOCK_TOKENS", 4)
    blocks = read_items(save_ids(tmp_path / "x.npy", list(range(10))))
    assert [int(block.starts.sum()) for block in blocks] == [1, 0, 0]
    assert blocks[2].locate(1).endswith("x.npy, position 9")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}], dtype=object), "holds pickled objects, which are never loaded"),
        (np.array([1.5]), "holds float64, not token ids"),
        (np.array([True]), "holds bool"),
        (np.zeros((2, 2, 2), np.int32), "has the shape"),
        (np.array(3), "has the shape"),
    ],
)
def test_arrays_that_hold_no_token_ids(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(CorpusError, match=f"x.npy {message}"):
        read_items(tmp_path / "x.npy")


def test_a_truncated_array_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = save_ids(tmp_path / "x.npy", list(range(1000)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorpusError, match=r"truncated: 2,127 bytes, its header promises 2,128"):
        read_items(path)


@pytest.mark.parametrize("raw", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"raw ids"])
def test_what_is_no_array(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(raw)
    with pytest.raises(CorpusError, match=r"x.npy is not a .npy file"):
        read_items(tmp_path / "x.npy")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    stream, _ = stream_of([write_text(tmp_path / "a.txt", ["x"])])
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(CorpusError, match=r"cannot read .*a.txt: Is a directory"):
        list(stream.blocks())


def test_an_integer_of_any_length_stands_in_another_field(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    digits = "-" + "7" * 5000
    path.write_text(f'{{"id": {digits}, "n": 12, "text": "fine"}}\n')
    assert texts(read_items(path)) == ["fine"]
    (item,) = read_items(path, label="id")
    assert item.label == digits[:120]
    (item,) = read_items(path, label="n")
    assert item.label == "12"

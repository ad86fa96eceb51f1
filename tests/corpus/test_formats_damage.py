"""What a file claims is checked before it is believed: wrong sizes, offsets and kinds by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpus.corpora import drain, read_items, stream_of
from corpus.written import Corpus, mds, mds_sample, mds_shard, megatron, megatron_index, put
from stats.truth import layout_of

from engram_cli.corpus.base import CorpusOptions, TokenBlock
from engram_cli.corpus.flat import Marked
from engram_cli.errors import CorpusError, InputError
from engram_cli.stats.counting.count import count_blocks

CORPUS = Corpus(texts=["a", "b", "c"], ids=[[5, 6, 9], [7], [8, 300]], mark=9)
IDS = np.array(CORPUS.flat, "<u2").tobytes()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (megatron_index([3, 1, 2], [0, 6, 8], [0, 1, 2, 2], 8), "do not cover the sequences"),
        (megatron_index([3, 1, 2], [0, 6, 8], [1, 2, 3], 8), "do not ascend from 0"),
        (megatron_index([3, 1, 2], [0, 6, 8], [0, 2, 1, 3], 8), "do not ascend"),
        (megatron_index([3, 1, 2], [0, 6, 8], [0, 1, 2, 9], 8), "do not ascend"),
        (megatron_index([3, 1, 2], [0, 6, 8], [], 8), "do not cover the sequences"),
        (megatron_index([3, 1, 2], [0, 8, 6], [0, 1, 2, 3], 8), "sequence 1 is not where"),
        (megatron_index([3, 1, 2], [0, 6, -8], [0, 1, 2, 3], 8), "sequence 2 is not where"),
        (megatron_index([3, -1, 2], [0, 6, 8], [0, 1, 2, 3], 8), "sequence 1 has less than 0"),
        (megatron_index([3, 1, 2**31 - 1], [0, 6, 8], [0, 1, 2, 3], 8), "is truncated"),
        (megatron_index([3, 1, 1], [0, 6, 8], [0, 1, 2, 3], 8), "has 6 ids, its index 5"),
        (megatron_index([3, 1, 2], [0, 6, 8], [0, 1, 2, 3], 6), "type 6, no integers"),
        (megatron_index([3, 1, 2], [0, 6, 8], [0, 1, 2, 3], 99), "type 99"),
        (struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 2**63, 2**63), "promises"),
        (struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 2, 8, 0, 0), "version 2"),
        (b"something else, and longer than the header", "is not a Megatron index"),
        (b"", "is truncated"),
    ],
)
def test_a_megatron_index_that_lies(index: bytes, message: str, tmp_path: Path) -> None:
    put(tmp_path, "a.bin", IDS)
    put(tmp_path, "a.idx", index)
    with pytest.raises(CorpusError, match=message):
        read_items(tmp_path / "a.bin")


def test_a_megatron_pair_is_found_by_any_of_its_names_and_read_once(tmp_path: Path) -> None:
    megatron(8, "<u2", 1)(tmp_path, CORPUS)
    for names in (["a.bin"], ["a.idx"], ["a"], ["a.*"], ["."], ["a.idx", "a.bin"]):
        stream, files = stream_of([tmp_path / name for name in names])
        assert [file.name for file in files] == [str(tmp_path / "a.bin")]
        assert drain(stream) == CORPUS.ids
    (tmp_path / "a.bin").unlink()
    with pytest.raises(CorpusError, match=r"a.idx is the index of a file that is not there"):
        stream_of([tmp_path / "a.idx"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((20240520, 1, 7), "its header of 7 tokens promises 1,038"),
        ((20240520, 1, -1), "of -1 tokens"),
        ((20240801, 7, 6), "promises 1,048"),
        ((20240520, 2, 6), "version 2 of llm.c's format for uint16 ids"),
        ((20240520, 7, 6), "version 7 of llm.c's format for uint16 ids"),
        ((20240801, 1, 6), "version 1 of llm.c's format for uint32 ids"),
    ],
)
def test_a_header_of_llmc_that_lies(
    header: tuple[int, int, int], message: str, tmp_path: Path
) -> None:
    put(tmp_path, "a.bin", struct.pack("<3i", *header).ljust(1024, b"\0") + IDS)
    with pytest.raises(CorpusError, match=message):
        read_items(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([3, 2, 6], "do not ascend"),
        ([3, 2**63 + 1, 6], "do not ascend"),
        ([7, 4, 6], "do not ascend"),
        ([3, 4, 2**64 - 1], "neither 2 nor 4 bytes"),
        ([3, 4, 5], "neither 2 nor 4 bytes"),
        ([], "neither 2 nor 4 bytes"),
    ],
)
def test_an_index_of_datatrove_that_lies(ends: list[int], message: str, tmp_path: Path) -> None:
    put(tmp_path, "a.ds", IDS)
    put(tmp_path, "a.ds.index", np.array(ends, "<u8").tobytes())
    with pytest.raises(CorpusError, match=message):
        read_items(tmp_path / "a.ds")


def test_a_ds_needs_its_index_and_its_width_can_be_said(tmp_path: Path) -> None:
    put(tmp_path, "a.ds", IDS)
    with pytest.raises(CorpusError, match=r"a.ds needs a.ds.index next to it"):
        read_items(tmp_path / "a.ds")
    put(tmp_path, "a.ds.index", np.array([3], "<u8").tobytes())
    with pytest.raises(CorpusError, match="has 4 bytes a token, no uint16"):
        read_items(tmp_path / "a.ds", ids_dtype="uint16")


def edited(folder: Path, change: Callable[[dict], object], shard: int = 0) -> Path:
    """An MDS data set with one entry of its index changed."""
    mds("ndarray:int32")(folder, CORPUS)
    index = folder / "mds" / "index.json"
    about = json.loads(index.read_text())
    change(about["shards"][shard])
    index.write_text(json.dumps(about))
    return folder / "mds"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw_data": {"basename": "../x"}}, "outside of its folder"),
        ({"raw_data": {"basename": "/etc/passwd"}}, "outside of its folder"),
        ({"raw_data": {"basename": "missing"}}, "needs missing next to it"),
        ({"raw_data": None}, "describes a shard"),
        ({"samples": 3}, "it has 2 samples, index.json says 3"),
        ({"samples": -1}, "describes a shard"),
        ({"column_sizes": [8, None]}, "describes a shard"),
        ({"column_sizes": [-8, None, None]}, "describes a shard"),
        ({"column_sizes": [9, None, None]}, "the columns of sample 0 do not fill it"),
        ({"column_encodings": ["int", "pkl", "str"]}, "is of encoding pkl"),
        ({"column_encodings": ["int", "ndarray:float32", "str"]}, "is of encoding ndarray:float"),
        ({"column_names": ["id", "x", "url"]}, "has no column 'text or tokens or input_ids'"),
        ({"format": "jsonl"}, "describes a shard"),
        (
            {"compression": "br", "zip_data": {"basename": "x.br"}, "raw_data": 1},
            "compressed with .br",
        ),
    ],
)
def test_an_mds_index_that_lies(change: dict, message: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda shard: shard.update(change))
    with pytest.raises(CorpusError, match=message):
        read_items(folder)


ARRAY = struct.pack("<BH", 1 << 2 | 1, 1) + bytes(4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "no bytes"),
        (b"\x00", "without a shape"),
        (b"\x05\x01", "without a shape"),
        (struct.pack("<BH", 1 << 2 | 1, 2) + bytes(4), r"of shape \[2\] with 1 values"),
        (ARRAY + b"x", "5 bytes are no int32"),
        (struct.pack("<BQQ", 2 << 2 | 3, 2**63, 2) + bytes(4), "of shape"),
    ],
)
def test_an_array_of_mds_that_lies(value: bytes, message: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda shard: None)
    sizes: list[int | None] = [8, None, None]
    samples = [mds_sample([bytes(8), v, b""], sizes) for v in (ARRAY, value)]
    put(folder, "0/shard.00000.mds", mds_shard(samples))
    with pytest.raises(CorpusError, match=f"shard.00000.mds is damaged: sample 1: .*{message}"):
        read_items(folder)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (4, 0, "do not follow each other"),
        (8, 1, "do not follow each other"),
        (12, 2**32 - 1, "the columns of sample 1 do not fill it"),
        (12, 70, "the columns of sample 1|goes on after"),
    ],
)
def test_offsets_of_mds_that_lie(at: int, value: int, message: str, tmp_path: Path) -> None:
    path = edited(tmp_path, lambda shard: None) / "0" / "shard.00000.mds"
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        read_items(tmp_path / "mds")


def test_arrow_offsets_beyond_the_values_are_met_before_they_are_used(tmp_path: Path) -> None:
    lists = pa.array([[1, 2], [3]], pa.list_(pa.int32()))
    for column, name in ((lists, "input_ids"), (pa.array(["ab", "c"]), "text")):
        table = pa.RecordBatch.from_arrays([column], [name])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_batch(table)
        raw = sink.getvalue().to_pybytes()
        offsets, wrong = (np.array([0, 2, end], np.int32).tobytes() for end in (3, 2**30))
        assert raw.count(offsets) == 1
        put(tmp_path, "a.arrow", raw.replace(offsets, wrong))
        with pytest.raises(CorpusError, match=r"a.arrow cannot be read as Arrow"):
            read_items(tmp_path / "a.arrow")


def test_an_arrow_stream_cut_between_two_batches_is_refused(tmp_path: Path) -> None:
    """pyarrow itself takes it for a whole one."""
    batch = pa.RecordBatch.from_pydict({"text": ["a"]})
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, batch.schema)
    writer.write_batch(batch)
    cut = sink.tell()
    writer.write_batch(batch)
    writer.close()
    raw = sink.getvalue().to_pybytes()
    assert pa.ipc.open_stream(raw[:cut]).read_all().num_rows == 1
    put(tmp_path, "a.arrow", raw[:cut])
    with pytest.raises(CorpusError, match="the mark at the end of an Arrow stream is missing"):
        read_items(tmp_path / "a.arrow")


def test_saved_data_sets_that_name_what_they_have_not(tmp_path: Path) -> None:
    put(tmp_path, "state.json", b'{"_data_files": [{"filename": "../secret.arrow"}]}')
    with pytest.raises(CorpusError, match=r"lists '../secret.arrow', which is not in it"):
        stream_of([tmp_path])
    put(tmp_path, "state.json", b'{"_data_files": [], "_indices_data_files": [{"filename": "x"}]}')
    with pytest.raises(CorpusError, match="is a selection from its files"):
        stream_of([tmp_path])


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.npy.gz", b"\x1f\x8b\x08" + bytes(20), "compressed with gzip"),
        ("a.tar.xz", b"\xfd7zXZ\x00" + bytes(20), "compressed with xz"),
        ("a.bin", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd"),
        ("a.txt", b"PK\x03\x04" + bytes(20), "compressed with zip"),
        ("a.feather", b"FEA1" + bytes(20), "Feather version 1"),
        ("a.mds", bytes(20), "shard of an MDS data set"),
        ("a.bin", struct.pack("<3i", 20240522, 1, 4).ljust(1024, b"\0"), "llm.c evaluation file"),
    ],
)
def test_what_is_known_and_not_read_is_named(
    name: str, raw: bytes, message: str, tmp_path: Path
) -> None:
    put(tmp_path, name, raw)
    with pytest.raises(CorpusError, match=f"{name}.* {message}"):
        read_items(tmp_path / name)


def test_bare_ids_that_are_no_whole_ids(tmp_path: Path) -> None:
    put(tmp_path, "a.bin", IDS + b"x")
    with pytest.raises(CorpusError, match="13 bytes are not a whole number of ids of 2 bytes"):
        read_items(tmp_path / "a.bin")
    put(tmp_path, "a.bin", IDS + b"xy")
    with pytest.raises(CorpusError, match="14 bytes are not a whole number of ids of 4 bytes"):
        read_items(tmp_path / "a.bin", ids_dtype="int32")


def test_the_width_of_bare_ids_is_told_from_them_or_said(tmp_path: Path) -> None:
    put(tmp_path, "a.bin", np.array([5, 0, 70000, 2**18 - 1], "<u4").tobytes())
    (block,) = read_items(tmp_path / "a.bin")
    assert isinstance(block, TokenBlock)
    assert block.ids.tolist() == [5, 0, 70000, 2**18 - 1]
    (block,) = read_items(tmp_path / "a.bin", ids_dtype="uint16")
    assert len(block.ids) == 8


@pytest.mark.parametrize("name", ["a.bin", "a.ds", "a.npy"])
def test_a_token_beyond_the_vocabulary_is_found_by_file_document_and_position(
    name: str, tmp_path: Path
) -> None:
    put(tmp_path, name, IDS)
    put(tmp_path, "a.ds.index", CORPUS.ends.astype("<u8").tobytes())
    stream, _ = stream_of([tmp_path / name], document_end_id=9)
    layout = layout_of(moduli=(31, 37, 41, 43), heads=2, size=300)
    # [5, 6, 9], [7], [8, 300] by the index, [5, 6, 9], [7, 8, 300] by the token 9.
    where = "document 2, position 1" if name == "a.ds" else "document 1, position 2"
    with pytest.raises(InputError, match=f"{name}, {where}.*300"):
        count_blocks(stream.blocks(), layout)


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_marked_documents_do_not_depend_on_blocks(side: str, block: int) -> None:
    ids = np.array([9, 1, 9, 9, 2, 3, 9], np.uint16)
    marked = Marked(9, side)
    found = [
        begin
        for at in range(0, len(ids), block)
        for begin in marked.within(ids[at : at + block], at).tolist()
    ]
    assert found == {"after": [0, 1, 3, 4], "before": [0, 2, 3, 6]}[side]
    assert Marked(70000, side).within(ids, 0).tolist() == [0]


def test_options_of_bare_ids_are_checked() -> None:
    for wrong in ({"document_end_id": -1}, {"ids_dtype": "float32"}):
        with pytest.raises(InputError):
            CorpusOptions(**wrong)  # type: ignore[arg-type]

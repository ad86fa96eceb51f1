"""What a file claims is compared with the file before it is believed, in every JSON and header."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from small_tokenizers import byte_level_tokenizer
from stats.truth import count, layout_of, zipf_documents

from engram_cli.commands.checkpoint import read_model_shape
from engram_cli.commands.plan.file import read_plan
from engram_cli.commands.workspace import read_config
from engram_cli.errors import ArtifactError, EngramError, InputError, VocabularyError
from engram_cli.files import MAX_DEPTH, parse_json, read_json
from engram_cli.formats.embeddings import find_embeddings
from engram_cli.rows.safetensors import read_header
from engram_cli.stats.results import count_results
from engram_cli.stats.stats_io import read_stats, write_stats
from engram_cli.table.lock import build_lock, lock_path
from engram_cli.vocab import parquet
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.tokenizer import load_tokenizer, typed_text

STRANGE = {
    "surrogate": b'{"format": "\\ud800"}',
    "raw surrogate": b'{"format": "\xed\xa0\x80"}',
    "surrogate in a key": b'{"\\udfff": 1}',
    "nested": b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "nested a little": b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}",
    "digits": b'{"version": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "cut": b'{"a": ',
}


@pytest.mark.parametrize("raw", STRANGE.values(), ids=STRANGE)
def test_strange_json_is_an_error_of_its_reader(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(raw)
    assert type(caught.value).__mro__[-3] is Exception  # ValueError or one of its kin
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    for read in (lambda p: read_json(p, "a plan"), read_plan):
        with pytest.raises(ArtifactError, match=r"x\.json"):
            read(path)


def test_plain_json_is_what_it_was() -> None:
    value = {"a": ["\U0001f34e \u2028 \0", 1.5, 2**70, None, True], "b": {"c": [[]]}}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8-sig")) == value
    deep: Any = 0
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert parse_json(json.dumps(deep).encode()) == deep
    with pytest.raises(ValueError, match="nested"):
        parse_json(json.dumps([deep]).encode())


def test_a_file_too_large_to_be_a_description_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # of holes
    with pytest.raises(ArtifactError, match="too large"):
        read_json(path, "a plan")


def test_a_long_error_is_cut_in_the_middle() -> None:
    error = EngramError("begin " + "x" * 10**6 + " end", "hint")
    assert len(error.message) < 1100
    assert error.message.startswith("begin")
    assert error.message.endswith("end")


@pytest.mark.parametrize(
    "owner",
    [b"[" * 4000, b'{"host": "\\ud800"}', b'{"host": "\\u0000", "pid": []}', b"\xff\xfe", b"[1]"],
)
def test_a_strange_lock_is_named_and_kept(owner: bytes, tmp_path: Path) -> None:
    table = tmp_path / "t.zarr"
    lock_path(table).write_bytes(owner)
    what = "is being built by process" if b"\\u0000" in owner else "is not a lock written by engram"
    with pytest.raises(EngramError, match=what), build_lock(table):
        pass
    assert lock_path(table).read_bytes() == owner


def header(entry: dict[str, Any], data: bytes = b"1234") -> bytes:
    text = json.dumps(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}
    ).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [9] * 300_000},  # its product has 286,000 digits
        {"shape": [1] * 9},
        {"shape": [2**63]},
        {"shape": [10**4000]},
        {"shape": "1"},
        {"shape": [1.0]},
        {"data_offsets": [0, 2**64]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 1, 2]},
        {"data_offsets": {"0": 0, "4": 4}},
        {"dtype": ["F32"]},
    ],
)
def test_a_safetensors_header_is_measured_before_it_is_multiplied(
    entry: dict[str, Any], tmp_path: Path
) -> None:
    raw = header(entry)
    with pytest.raises(ArtifactError, match="no safetensors header"):
        read_header(raw, len(raw), "x")
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises((ArtifactError, InputError)):
        find_embeddings(tmp_path, "input", "a").read(0, 1)
    whole = header({})
    assert read_header(whole, len(whole), "x")["a"].spec.shape == (1,)


@pytest.fixture
def stats(tmp_path: Path, small_vocab: CompressedVocab) -> Path:
    from engram_cli import hash_layout

    layout = hash_layout("engram-v1", small_vocab, rows_per_head=101, heads=2, layers=(1,))
    counts = count(zipf_documents(seed=4, count=20, length=40, size=50), layout)
    write_stats(counts, partial(count_results, counts), tmp_path / "stats")
    return tmp_path / "stats"


def meta(array: Path, **changes: Any) -> None:
    document = json.loads((array / "zarr.json").read_bytes())
    for key, value in changes.items():
        if key == "chunk_shape":
            document["chunk_grid"]["configuration"]["chunk_shape"] = value
        elif key == "codecs":
            document["codecs"] += value
        else:
            document[key] = value
    (array / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [500_000_000]}, "claims a vocabulary of 500,000,000"),
        ({"shape": [2**40]}, "claims a vocabulary"),
        ({"chunk_shape": [2**40]}, "in chunks of"),
        ({"shape": [2**24], "chunk_shape": [1]}, "in chunks of 1"),
        ({"chunk_shape": [1]}, "another size than its array says"),
        (
            {"codecs": [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}]},
            "stored",
        ),
    ],
)
def test_counters_that_claim_more_than_is_there(
    changes: dict[str, Any], message: str, stats: Path
) -> None:
    meta(stats / "counters.zarr" / "lookup", **changes)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=message):
        read_stats(stats)
    assert tracemalloc.get_traced_memory()[1] < 50 * 10**6
    tracemalloc.stop()


def test_a_chunk_that_claims_to_unpack_to_more_is_not_unpacked(stats: Path) -> None:
    """The size in a zstd frame is what a decoder allocates: 8 bytes at the sixth."""
    chunk = stats / "counters.zarr" / "1" / "c" / "0"
    raw = bytearray(chunk.read_bytes())
    frame = bytes([raw[0], raw[1], raw[2], raw[3], 0b11100000]) + struct.pack("<Q", 2**40)
    chunk.write_bytes(frame + raw[9:])
    with pytest.raises(ArtifactError, match="another size than its array says"):
        read_stats(stats).hits(1)


def test_a_damaged_chunk_among_many_is_one_error_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zarr abandons the other reads of a call, which speak of themselves when the process ends."""
    from engram_cli.stats import arrays

    monkeypatch.setattr(arrays, "_CHUNK", 256)
    layout = layout_of(moduli=(10007, 10009, 10037, 10039), heads=2, layers=(1,))
    counts = count(zipf_documents(seed=4, count=20, length=40, size=50), layout)
    write_stats(counts, partial(count_results, counts), tmp_path / "stats")
    folder = tmp_path / "stats" / "counters.zarr" / "1" / "c"
    chunks = sorted(folder.iterdir())
    assert len(chunks) > 100
    for chunk in chunks[3:60:5]:
        chunk.write_bytes(chunk.read_bytes()[:-3])
    code = "from engram_cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(tmp_path / "stats"), "--out", "page.html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "counters.zarr/1 cannot be read" in done.stderr


def test_a_missing_chunk_is_zeros_without_memory(tmp_path: Path) -> None:
    from engram_cli.stats.arrays import read_array

    group = zarr.create_group(tmp_path / "g")
    group.create_array("a", shape=(2**27,), dtype="uint32", chunks=(2**22,), fill_value=0)
    tracemalloc.start()
    values = read_array(tmp_path / "g", "a", (2**27,), np.dtype(np.uint32))
    assert len(values) == 2**27
    assert not values[:: 2**20].any()
    tracemalloc.stop()


@pytest.mark.parametrize("change", ["rows", "texts", "not UTF-8"])
def test_a_vocabulary_is_measured_before_it_is_unpacked(
    change: str, tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.parquet"
    parquet.write_vocab(small_vocab, path)
    table = pq.read_table(path)
    if change == "rows":
        monkeypatch.setattr(parquet, "MOST_VOCABULARY", 100)
    elif change == "texts":  # one text, many times
        same = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), ["x" * 10**6])
        table = table.set_column(table.schema.get_field_index("text"), "text", same)
        monkeypatch.setattr(parquet, "_MOST_TEXT", 10**8)
    else:
        raw = pa.array([b"\xb0\xff"] * len(table), pa.binary()).view(pa.string())
        table = table.set_column(table.schema.get_field_index("key"), "key", raw)
    pq.write_table(table, path)
    with pytest.raises(ArtifactError, match="lacks columns of a vocabulary"):
        parquet.read_vocab(path)


def test_one_id_far_from_the_others_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    byte_level_tokenizer().save(str(path))
    document = json.loads(path.read_bytes())
    document["model"]["vocab"]["far"] = 60_000_000
    path.write_text(json.dumps(document))
    tracemalloc.start()
    with pytest.raises(VocabularyError, match="the id 60,000,000"):
        compress_vocab(path)
    with pytest.raises(VocabularyError, match="have no token"):
        VocabMap(lookup=np.array([0, 2**31 - 2], dtype=np.int32), size=2**31 - 1)
    assert tracemalloc.get_traced_memory()[1] < 50 * 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("value", ["a]\n---\n", "<script>", "", 5, None, ["llama"]])
def test_a_model_type_is_a_plain_name(value: Any, tmp_path: Path) -> None:
    config = {"hidden_size": 4, "num_hidden_layers": 2, "model_type": value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="model_type is"):
        read_model_shape(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 10**5,
        "x = 5",
        "[plan]\ntokens = " + "9" * 5000,
        "[plan]\nd = 2020-99-01",
        "\xff",
    ],
)
def test_a_strange_engram_toml_is_one_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "engram.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"engram\.toml"):
        read_config(path)


def test_a_text_is_what_was_typed_in_any_locale() -> None:
    assert typed_text("苹果 café") == "苹果 café"
    assert typed_text("苹果".encode().decode("ascii", "surrogateescape")) == "苹果"
    for wrong in (b"\xff".decode("utf-8", "surrogateescape"), "\ud800"):
        with pytest.raises(InputError, match="not UTF-8"):
            typed_text(wrong)


def test_a_panic_of_the_rust_side_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no Exception, so that nothing catches it by chance; neither is Ctrl-C."""
    path = tmp_path / "tokenizer.json"
    byte_level_tokenizer().save(str(path))
    panic: type[BaseException] = type("PanicException", (BaseException,), {})

    class Backend:
        raised: BaseException = panic("range end index 26")

        def __getattr__(self, name: str) -> Any:
            raise self.raised

    broken = replace(load_tokenizer(path), backend=Backend())
    for call in (lambda: broken.encode("x"), lambda: broken.decode_each([1])):
        Backend.raised = panic("range end index 26")
        with pytest.raises(VocabularyError, match=r"cannot .*: range end index 26"):
            call()
        Backend.raised = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            call()
    monkeypatch.setattr("tokenizers.Tokenizer", Backend())
    Backend.raised = panic("range end index 26")
    with pytest.raises(VocabularyError, match="that tokenizers can load: range end index 26"):
        load_tokenizer(path)

"""Corpora of token ids and of remote files as users type them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cli.conftest import Engram
from small_tokenizers import PROSE

from engram_cli.corpus.readers import READERS

ROWS = ("--rows-per-head", "1000", "--layers", "1")


@pytest.fixture
def ready(engram: Engram, tokenizer_file: Path) -> Engram:
    """A folder after compress-vocab."""
    shutil.copy(tokenizer_file, engram.folder / "tokenizer.json")
    assert engram("compress-vocab", "-q").code == 0
    return engram


def counted(engram: Engram, *arguments: object) -> dict:
    done = engram("hash-stats", *arguments, *ROWS, "--json", "--force")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_help_names_every_format(engram: Engram) -> None:
    told = " ".join(engram("hash-stats", "--help").out.replace("│", " ").split())
    listed = told.partition("text, jsonl")[2].partition(" (detected")[0].replace(" or ", ", ")
    assert {name.strip() for name in f"text, jsonl{listed}".split(",")} == set(READERS)
    assert "--document-end-id" in told


def test_a_token_parts_documents_and_without_one_that_is_said(ready: Engram) -> None:
    np.array([5, 6, 1, 7, 8, 1, 9], "<u2").tofile(ready.folder / "a.bin")
    done = ready("hash-stats", "a.bin", *ROWS)
    assert done.code == 0, done.err
    assert done.err.count("1 nanogpt file of uint16 ids: each is one document") == 1
    assert counted(ready, "a.bin")["documents"] == 1
    assert counted(ready, "a.bin", "--document-end-id", "1")["documents"] == 3
    assert counted(ready, "a.bin", "--format", "olmo", "--document-end-id", 1)["documents"] == 3
    (ready.folder / "engram.toml").write_text("[hash-stats]\ndocument-end-id = 6\n")
    assert counted(ready, "a.bin")["documents"] == 2


def test_the_eos_of_the_geometry_ends_documents(engram: Engram) -> None:
    np.array([5, 6, 1, 7, 8, 1, 9], "<u2").tofile(engram.folder / "a.bin")
    scheme = ("--scheme", "qwen-ple", "--vocab-size", "400", "--eos-id", "1")
    assert counted(engram, "a.bin", *scheme)["documents"] == 3
    assert counted(engram, "a.bin", *scheme, "--document-end-id", "5")["documents"] == 2


def test_a_wrong_width_is_met_by_its_ids(ready: Engram) -> None:
    np.array([5, 6, 70000, 8], "<u4").tofile(ready.folder / "a.bin")
    done = ready("hash-stats", "a.bin", *ROWS, "--ids-dtype", "int32")
    assert done.code == 2
    assert "a.bin, document 0, position 2" in done.error_line
    assert "float" in ready("hash-stats", "a.bin", *ROWS, "--ids-dtype", "float").error_line


def test_packed_and_remote_texts_give_what_plain_ones_give(ready: Engram) -> None:
    text = "\n".join(PROSE * 9).encode()
    (ready.folder / "a.txt").write_bytes(text)
    (ready.folder / "a.txt.gz").write_bytes(gzip.compress(text))
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/a.txt.gz", gzip.compress(text))
    try:
        plain, packed, remote = (
            counted(ready, name) for name in ("a.txt", "a.txt.gz", "memory://bucket/a.txt.gz")
        )
    finally:
        system.rm("/", recursive=True)
    assert plain["columns"] == packed["columns"] == remote["columns"]
    assert packed["bytes"] == remote["bytes"] < plain["bytes"]


def test_a_truncated_archive_is_one_line(ready: Engram) -> None:
    (ready.folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "apple"}\n' * 99)[:-4])
    done = ready("hash-stats", "a.jsonl.gz", *ROWS)
    assert done.code == 2
    assert "a.jsonl.gz is damaged or truncated" in done.error_line


def test_a_store_without_its_package_is_one_line(ready: Engram) -> None:
    done = ready("hash-stats", "abfs://bucket/a.txt", *ROWS)
    assert done.code == 2
    assert "pip install adlfs" in done.error_line

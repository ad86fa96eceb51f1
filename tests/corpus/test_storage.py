"""Addresses through fsspec: the memory and the local file system give what the disk gives."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from corpus.corpora import drain, stream_of
from corpus.written import VARIANTS, Corpus, put
from small_tokenizers import PROSE

from engram_cli.corpus import storage
from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.encode import Encoder, make_encoder
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError, DependencyError
from engram_cli.progress import SILENT
from engram_cli.vocab.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Iterator[Encoder]:
    made = make_encoder(load_tokenizer(tokenizer_file), "tokenizers", SILENT, size=None)
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[str]:
    """The address of an empty folder of fsspec's memory file system."""
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    system.rm("/", recursive=True)


def upload(folder: Path) -> None:
    fsspec.filesystem("memory").put(f"{folder}/", "/bucket/", recursive=True)


def names_of(paths: list[str], **options: Any) -> list[str]:
    chosen = CorpusOptions(**options)
    return [file.name.rpartition("bucket/")[2] for file in find_sources(paths, chosen).files]


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_format_is_read_from_afar(
    kind: str, tmp_path: Path, memory: str, tokenizer_file: Path, encoder: Encoder
) -> None:
    variant = VARIANTS[kind]
    tokenizer = load_tokenizer(tokenizer_file)
    ids = [tokenizer.encode(text) for text in PROSE]
    here = tmp_path / "bucket"
    here.mkdir()
    names = variant.write(here, Corpus(texts=PROSE, ids=ids, mark=0))
    upload(here)
    wanted, files = stream_of([here / name for name in names], encoder, **variant.options)
    expected = drain(wanted)
    for root in (memory, f"file://{here}"):
        stream, found = stream_of([f"{root}/{name}" for name in names], encoder, **variant.options)  # type: ignore[misc]
        assert drain(stream) == expected
        assert [file.size for file in found] == [file.size for file in files]
        assert [file.format for file in found] == [file.format for file in files]
        assert all(file.url == file.name and file.path is None for file in found)


def test_folders_globs_and_repetitions(tmp_path: Path, memory: str) -> None:
    for name in ("b.txt", "a.md", "z/c.txt.gz", ".hidden.txt", ".git/d.txt", "x.bin", "y/e.py"):
        put(tmp_path, name, b"text")
    upload(tmp_path)
    assert names_of([memory]) == ["a.md", "b.txt", "y/e.py", "z/c.txt.gz"]
    assert names_of([f"{memory}/[ab].*"]) == ["a.md", "b.txt"]
    assert names_of([f"{memory}/**/*.gz"]) == ["z/c.txt.gz"]
    assert names_of([memory], suffixes=(".bin",)) == ["x.bin"]
    twice = find_sources([memory, f"{memory}/b.txt"], CorpusOptions())
    assert (len(twice.files), twice.repeated) == (4, 1)
    assert twice.size == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://bucket/missing.txt", "corpus not found: memory://bucket/missing.txt"),
        ("memory://bucket/*.nothing", "no file matches"),
        ("nonsense://bucket/a.txt", "nonsense://bucket/a.txt: Protocol not known"),
        ("zip://a.txt::memory://b.zip", "chained addresses"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str, memory: str) -> None:
    with pytest.raises(CorpusError, match=message):
        find_sources([name], CorpusOptions())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://nosuchhost.invalid/x.txt", r"there is no host nosuchhost\.invalid"),
        ("http://127.0.0.1:1/x.txt", "the connection is refused"),
    ],
)
def test_a_server_that_is_not_reached_is_no_missing_corpus(url: str, reason: str) -> None:
    with pytest.raises(CorpusError, match=f"{url} cannot be reached: {reason}") as caught:
        find_sources([url], CorpusOptions())
    assert "network" in caught.value.hint


def test_a_store_whose_package_is_missing_is_named() -> None:
    with pytest.raises(DependencyError, match=r"abfs://bucket/a.txt: ") as caught:
        find_sources(["abfs://bucket/a.txt"], CorpusOptions())
    assert caught.value.hint == "pip install adlfs"


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"memory://a.txt needs the package fsspec") as caught:
        find_sources(["memory://a.txt"], CorpusOptions())
    assert "engram-tables[remote]" in caught.value.hint


def test_a_store_that_fails_while_it_is_read_is_named(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    class Lost(Exception):
        """No OSError: stores raise what they like."""

    def fail(*given: Any) -> bytes:
        raise Lost("the connection is gone")

    put(tmp_path, "a.txt", b"text")
    upload(tmp_path)
    stream, _ = stream_of([f"{memory}/a.txt"], encoder)  # type: ignore[list-item]
    inner = type(fsspec.filesystem("memory").open("/bucket/a.txt"))
    monkeypatch.setattr(inner, "read", fail, raising=False)
    with pytest.raises(CorpusError, match=r"cannot read memory.*a.txt: the connection is gone"):
        drain(stream)


def test_columns_of_an_array_are_not_gathered_from_afar(tmp_path: Path, memory: str) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(6).reshape(2, 3)))
    upload(tmp_path)
    stream, _ = stream_of([f"{memory}/a.npy"])  # type: ignore[list-item]
    with pytest.raises(CorpusError, match="stored by column") as caught:
        drain(stream)
    assert "copy the file here" in caught.value.hint


def test_known_endings_are_not_opened_to_be_told(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand shards would be ten thousand requests."""
    for name in ("a.parquet", "b.jsonl.zst", "c.txt"):
        put(tmp_path, name, b"")
    upload(tmp_path)
    monkeypatch.setattr(storage, "open_remote", None)
    assert len(names_of([memory])) == 3


def test_paths_are_no_addresses() -> None:
    assert storage.is_remote("s3://a/b")
    assert not any(map(storage.is_remote, ["a/b", "/a://b", "C://x", "a:b", "-"]))

"""A corpus that changes while it is read, or between two runs, is not taken for what it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import stream_of
from corpus.written import VARIANTS, Corpus

from engram_cli.corpus import text as corpus_text
from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.partitions import plan_partitions
from engram_cli.corpus.readers import READERS, mds
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stamps import check_companions, continues, request_of, stamps_of
from engram_cli.errors import CorpusError

CORPUS = Corpus(texts=["a first text", "b\nc", "third"], ids=[[5, 6, 9], [7, 9], [8, 3, 9]], mark=9)
COMPANIONS = {"megatron": "a.idx", "datatrove": "a.ds.index", "mds": "0/shard.00000.mds"}
WRITES: dict[str, Callable[[Path], Any]] = {
    "grows": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "shrinks": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "overwritten": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "replaced": lambda path: replaced(path),
    "gone": lambda path: path.unlink(),
}


def replaced(path: Path) -> None:
    """Another file of the same size and the same time of change."""
    about, raw = path.stat(), path.read_bytes()
    path.unlink()
    Path(f"{path}.kept").write_bytes(b"")  # takes the inode that has become free
    path.write_bytes(raw[::-1])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def long_ago(folder: Path) -> None:
    """Clocks of file systems are coarse: what the tests write twice has two times."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


def planned(folder: Path, kind: str) -> tuple[list[CorpusFile], CorpusOptions]:
    variant = VARIANTS[kind]
    names = [str(folder / name) for name in variant.write(folder, CORPUS)]
    mark = {"document_end_id": CORPUS.mark} if variant.marks else {}
    options = CorpusOptions(**variant.options | mark)
    long_ago(folder)
    return list(find_sources(names, options).files), options


@pytest.mark.parametrize("change", WRITES)
@pytest.mark.parametrize("kind", ["text", "jsonl", "text.gz", "text.zst"])
def test_a_text_that_changes_while_it_is_read_is_named(
    change: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_text, "_CHUNK", 4)
    (file,), options = planned(tmp_path, kind)
    items = READERS.load(file.format).read(file, options)
    next(items)
    WRITES[change](Path(file.name))
    with pytest.raises(CorpusError, match=r"a\.\S+ has changed while it was read"):
        list(items)


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_format_looks_at_its_file_when_it_ends(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mds, "BLOCK_TOKENS", 1)
    (file, *_), options = planned(tmp_path, kind)
    read = [file]
    if file.format == "mds":  # its index is read, and closed, before the first shard
        read = list(READERS.load("mds").companions(file, options))
    items = READERS.load(file.format).read(file, options)
    next(items)
    os.utime(read[0].name, ns=(10**18, 10**18 + 1))
    with pytest.raises(CorpusError, match="has changed while it was read"):
        list(items)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_file_that_changes_before_it_is_read_is_named(kind: str, tmp_path: Path) -> None:
    (file, *_), options = planned(tmp_path, kind)
    (tmp_path / "copy").write_bytes(Path(file.name).read_bytes())
    (tmp_path / "copy").replace(file.name)
    with pytest.raises(CorpusError, match="has changed since the run began"):
        list(READERS.load(file.format).read(file, options))


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_file_that_decides_tokens_is_stamped(kind: str, tmp_path: Path) -> None:
    """And a stamp is another one after each of them has changed."""
    files, options = planned(tmp_path, kind)
    stamps = stamps_of(files, options)
    assert stamps is not None
    unread = ("cache-1.arrow", "dataset_info.json", "state.json", "dataset_dict.json")
    paths = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in unread]
    assert sorted(stamps) == sorted(map(str, paths))
    for path in paths:
        os.utime(path, ns=(10**18, 10**18 + 1))
        changed = stamps_of(find_sources([*{file.name for file in files}], options).files, options)
        assert changed is not None
        assert changed.pop(str(path)) != stamps[str(path)]
        os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("kind", ["megatron", "datatrove", "mds"])
def test_a_companion_that_changes_between_two_sections_is_named(kind: str, tmp_path: Path) -> None:
    files, options = planned(tmp_path, kind)
    stamps = stamps_of(files, options)
    plan = plan_partitions(files, options, 2**10)
    check_companions(plan.files, options, stamps)
    (name,) = (path for path in tmp_path.rglob("*") if str(path).endswith(COMPANIONS[kind]))
    os.utime(name, ns=(10**18, 10**18 + 1))
    with pytest.raises(
        CorpusError, match=f"{COMPANIONS[kind]} has changed while the corpus was read"
    ):
        check_companions(plan.files, options, stamps)


def test_what_cannot_be_read_twice_has_no_stamps(tmp_path: Path) -> None:
    _, files = stream_of([Path("-")])
    assert stamps_of(files, CorpusOptions()) is None
    os.mkfifo(tmp_path / "pipe")
    _, files = stream_of([tmp_path / "pipe"], format="text")
    assert stamps_of(files, CorpusOptions()) is None


def test_only_a_strict_request_is_continued_by_another() -> None:
    strict = request_of("digest", CorpusOptions())
    lenient = request_of("digest", CorpusOptions(errors="replace"))
    other = request_of("another", CorpusOptions())
    found = {(a, b) for a in (strict, lenient) for b in (strict, lenient, other) if continues(a, b)}
    assert found == {(strict, strict), (lenient, lenient), (lenient, strict)}
    assert not any(continues(lenient, value) for value in (None, 3, "", "digest other"))

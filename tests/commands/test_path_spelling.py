"""Figures do not depend on how the corpus is named, where it lies or in what parts it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from commands.counted import run
from small_tokenizers import PROSE

from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.stamps import identity
from engram_cli.stats.stats_io import read_stats

OPTIONS = {"holdout": 0.2}


@pytest.fixture
def here(corpus_workspace: Path) -> Path:
    """A workspace whose corpus has documents in two folders, one of them a copy of another."""
    corpus = corpus_workspace / "corpus"
    for folder in ("even", "odd"):
        (corpus / folder).mkdir()
    for index in range(40):
        words = " ".join((" ".join(PROSE).split() * 3)[index : index + 60])
        line = json.dumps({"text": f"{index} {words}"}) + "\n"
        with (corpus / ("odd" if index % 2 else "even") / "part.jsonl").open("a") as stream:
            stream.write(line)
    shutil.copy(corpus / "odd" / "part.jsonl", corpus / "even" / "copy.jsonl")
    return corpus_workspace


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}


def test_spelling_folder_and_place_change_no_byte(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(run(here, out=here / "plain", **OPTIONS).out)
    moved = tmp_path_factory.mktemp("elsewhere") / "renamed"
    shutil.copytree(here / "corpus", moved)
    (here / "link").symlink_to(here / "corpus")
    work = here / "corpus" / "even"
    monkeypatch.chdir(work)
    spellings = (moved, here / "link", "..", f"../../{(here / 'corpus').name}", "../../corpus/./")
    for index, name in enumerate(spellings):
        found = run(here, sources=(name,), out=here / f"out{index}", **OPTIONS)
        assert bytes_of(found.out) == expected, name
    monkeypatch.chdir(here)
    files = [os.path.relpath(file) for file in sorted((here / "corpus").rglob("*.*"))]
    files.sort(key=lambda name: (name.count("/"), name))  # in a folder its files come first
    found = run(here, sources=files, out=here / "files", **OPTIONS)
    assert bytes_of(found.out) == expected


def test_parts_named_by_their_own_folders_merge_into_the_whole(here: Path) -> None:
    whole = read_stats(run(here, out=here / "whole", **OPTIONS).out).document
    corpus = here / "corpus"
    parts = []
    for name in ("even", "odd", "0.txt", "1.txt"):
        out = run(here, sources=(corpus / name,), out=here / f"of-{name}", **OPTIONS).out
        parts.append(out)
    out = here / "merged"
    merge_stats(MergeStatsRequest(parts=tuple(parts), workspace=Workspace(here), out=out))
    merged = read_stats(out).document
    assert merged["growth"] == whole["growth"]
    assert merged["locality"]["hot"] == whole["locality"]["hot"]
    assert merged["locality"]["held_out_tokens"] == whole["locality"]["held_out_tokens"] > 0


def test_copies_are_one_and_other_files_are_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one.bin", tmp_path / "two.bin"
    content = bytes(range(256)) * 64
    one.write_bytes(content)
    two.write_bytes(content)
    assert identity(str(one)) == identity(str(two)) == identity(os.path.relpath(one))
    assert identity(f"{one}\0001") != identity(str(one))
    for changed in (b"\1" + content[1:], content[:-1] + b"\0", content + b"\0", b""):
        two.write_bytes(changed)
        assert identity(str(one)) != identity(str(two))
    assert identity("s3://bucket/one") != identity("s3://bucket/two")


def test_indices_of_equal_sizes_are_told_apart_by_their_shards(tmp_path: Path) -> None:
    found = set()
    for content in (b"one", b"two", b"two"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "index.json").write_text("{}")
        (folder / "shard.00000.mds").write_bytes(content)
        found.add(identity(str(folder / "index.json")))
    assert len(found) == 2

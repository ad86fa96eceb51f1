"""Files, folders, globs and standard input become the files of a corpus."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError, InputError

PLAIN = CorpusOptions()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(folder: Path, *names: str, **options: object) -> list[str]:
    chosen = CorpusOptions(**options)  # type: ignore[arg-type]
    files = find_sources([folder / name for name in names], chosen).files
    return [file.path.relative_to(folder).as_posix() for file in files if file.path]


def test_a_folder_gives_its_known_files_sorted_and_no_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.PY", "z/c.md", "z/a.rst", "x.bin", ".git/d.txt", ".e.txt", "m.json")
    assert found(tmp_path, "") == ["a.PY", "b.txt", "z/a.rst", "z/c.md"]


def test_suffixes_choose_what_a_folder_gives(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.bin", "m.json")
    assert found(tmp_path, "", suffixes=(".bin", ".json")) == ["a.bin", "m.json"]


def test_globs_are_sorted_and_sources_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt", "d/c.txt", "z.md")
    assert found(tmp_path, "z.md", "*.txt") == ["z.md", "a.txt", "b.txt"]
    assert found(tmp_path, "**/*.txt") == ["a.txt", "b.txt", "d/c.txt"]


def test_a_file_with_a_glob_character_in_its_name_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert found(tmp_path, "a[1].txt") == ["a[1].txt"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    sources = find_sources([tmp_path / "b.txt", tmp_path, tmp_path / "*.txt"], PLAIN)
    assert [file.path.name for file in sources.files if file.path] == ["b.txt", "a.txt"]
    assert sources.repeated == 5


def test_formats_are_told_by_first_bytes_then_by_ending(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(3))
    os.rename(tmp_path / "ids.npy", tmp_path / "ids.bin")
    touch(tmp_path, "a.jsonl", "b.json", "c.ndjson", "d.rs", "e.unknown")
    files = find_sources([tmp_path / n for n in sorted(os.listdir(tmp_path))], PLAIN).files
    assert [file.format for file in files] == ["jsonl"] * 3 + ["text", "text", "npy"]
    forced = find_sources([tmp_path / "a.jsonl"], CorpusOptions(format="text")).files
    assert forced[0].format == "text"


def test_sizes_are_summed_unless_there_is_a_pipe(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "bb.txt")
    assert find_sources([tmp_path], PLAIN).size == len("a.txt") + len("bb.txt")
    sources = find_sources([tmp_path, "-", "-"], PLAIN)
    assert sources.size is None
    assert [file.name for file in sources.files][-1] == "<stdin>"
    os.mkfifo(tmp_path / "pipe")
    assert find_sources([tmp_path / "pipe"], PLAIN).files[0].size is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.txt"], "corpus not found: .*missing.txt"),
        (["*.nothing"], "no file matches"),
        (["empty"], "no corpus file in"),
        (["packed.npy.gz"], "compressed with gzip"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed.npy.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(CorpusError, match=message):
        find_sources([tmp_path / name for name in names], PLAIN)


def test_unusable_options_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(InputError, match="unknown corpus format 'pickle'"):
        find_sources([tmp_path], CorpusOptions(format="pickle"))
    with pytest.raises(InputError, match="no corpus given"):
        find_sources([], PLAIN)
    with pytest.raises(CorpusError, match="npy cannot be read from standard input"):
        find_sources(["-"], CorpusOptions(format="npy"))
    for wrong in ({"errors": "ignore"}, {"document_separator": ""}, {"suffixes": ("txt",)}):
        with pytest.raises(InputError):
            CorpusOptions(**wrong)  # type: ignore[arg-type]

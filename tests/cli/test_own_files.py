"""What engram wrote is no corpus: every command that reads one says what was given instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.conftest import Engram
from patching.patched import artifact, opened, patch_of
from small_tokenizers import byte_level_tokenizer

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError
from engram_cli.patches.patch_file import write_patch

GEOMETRY = ("--rows-per-head", "40", "--layers", "1", "--heads", "2", "-q")
GIVEN = {
    "engram-vocab.parquet": "is a compressed vocabulary, not a corpus",
    "renamed.parquet": "is a compressed vocabulary, not a corpus",
    "engram-stats/sample.parquet": "is the sample of statistics, not a corpus",
    "moved.parquet": "is the sample of statistics, not a corpus",
    "engram-stats/stats.json": "is part of statistics, not a corpus",
    "other-stats.json": "is a file of engram (engram-stats), not a corpus",
    "engram-stats": "is statistics, not a corpus",
    "t.zarr": "is a table, not a corpus",
    "t.zarr/zarr.json": "is part of a table, not a corpus",
    "p.patch.safetensors": "is a patch, not a corpus",
    "tokenizer.json": "is a tokenizer, not a corpus",
}


@pytest.fixture
def workspace(engram: Engram) -> Engram:
    """A folder with a vocabulary, statistics, a table and a patch."""
    byte_level_tokenizer().save(str(engram.folder / "tokenizer.json"))
    (engram.folder / "corpus.txt").write_text("Only Alexander could tame it.\n", encoding="utf-8")
    for command in (("compress-vocab",), ("hash-stats", "corpus.txt", *GEOMETRY)):
        done = engram(*command)
        assert done.code == 0, done.err
    shutil.copy("engram-vocab.parquet", "renamed.parquet")
    shutil.copy("engram-stats/sample.parquet", "moved.parquet")
    shutil.copy("engram-stats/stats.json", "other-stats.json")
    base = opened(artifact(Path("t.zarr"), "table", "float32"))
    write_patch(Path("p.patch.safetensors"), patch_of(base))
    return engram


def test_each_file_is_named_for_what_it_is(workspace: Engram) -> None:
    for given, what in GIVEN.items():
        with pytest.raises(CorpusError) as caught:
            find_sources([given], CorpusOptions())
        assert f"{given} {what}" in caught.value.message
    chunk = next(
        each for each in Path("t.zarr").rglob("*") if each.is_file() and each.name != "zarr.json"
    )
    with pytest.raises(CorpusError, match=r"is part of the table .*t\.zarr, not a corpus"):
        find_sources([chunk], CorpusOptions())
    with pytest.raises(CorpusError, match="vocabulary"):
        find_sources(["ren*.parquet"], CorpusOptions())


def test_every_command_refuses_it(workspace: Engram) -> None:
    vocabulary = "engram-vocab.parquet"
    for command in (
        ("hash-stats", vocabulary, "--out", "s"),
        ("hash-stats", "--add", vocabulary, "--to", "engram-stats"),
        ("build-table", "--init", "next-token", "--corpus", vocabulary, "-o", "n.zarr", *GEOMETRY),
        ("diff", "t.zarr", "t.zarr", "--corpus", vocabulary),
    ):
        done = workspace(*command)
        assert done.code == 2, command
        assert f"{vocabulary} is a compressed vocabulary, not a corpus" in done.error_line


def test_a_corpus_with_columns_and_names_alike_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"], "count": [1]}), tmp_path / "sample.parquet")
    (tmp_path / "a.json").write_text('{"format": "mine", "text": "one"}')
    names = ["sample.parquet", "a.json"]
    found = find_sources([tmp_path / name for name in names], CorpusOptions()).files
    assert [file.path.name for file in found if file.path] == names

"""Streams that are closed or full, names that are no text, and outputs inside of each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import Engram
from commands.made import make

from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture
def here(tmp_path: Path, tokenizer_file: Path, small_vocab: CompressedVocab) -> Path:
    """A folder with a vocabulary, statistics, a table and a bundle."""
    return make(tmp_path / "here", tokenizer_file, small_vocab).folder


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run `engram` with redirections that only a shell can make."""
    program = f"{sys.executable} -m engram_cli {command}"
    return subprocess.run(
        ["sh", "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("verify engram-vocab.parquet > /dev/full", 2, "cannot write to standard output"),
        ("verify engram-vocab.parquet --json > /dev/full", 2, "cannot write to standard output"),
        ("verify engram-vocab.parquet >&-", 0, ""),
        ("verify engram-vocab.parquet >&- 2>&-", 0, ""),
        ("hash-stats - --out new <&-", 2, "standard input is closed"),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_streams_that_are_closed_or_full(here: Path, redirected: str, code: int, said: str) -> None:
    done = shell(here, redirected)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert len(re.findall('error"?: ', done.stderr)) == (1 if said else 0)


def test_artifacts_under_names_that_are_not_utf8(engram: Engram, here: Path) -> None:
    odd = here.rename(here.with_name("odd-\udcff"))
    assert engram("inspect", odd / "engram-vocab.parquet").code == 0
    assert engram("inspect", odd / "engram-stats").code == 0
    done = engram("verify", odd / "engram-stats", "--json")
    assert json.loads(done.out)["problems"] == []


@pytest.mark.parametrize(
    "command",
    [
        ("report", "engram-stats", "--out", "engram-stats/page.html"),
        ("inspect", "engram-table.zarr", "--report", "engram-table.zarr/page.html"),
        ("hash-stats", "corpus.txt", "--out", "new", "--report", "new/page.html"),
        ("hash-stats", "corpus.txt", "--out", "new", "--report", "new"),
    ],
)
def test_a_page_inside_an_artifact_is_refused(
    engram: Engram, here: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(here)
    done = engram(*command)
    assert done.code == 2
    assert "holds nothing but what engram lists there" in done.error_line
    assert not list(here.rglob("page.html"))


def test_a_name_cannot_forge_a_line(engram: Engram, here: Path) -> None:
    corpus = here / "corpus"
    corpus.mkdir()
    for name in ("a\nforged.txt", "b.txt"):
        (corpus / name).write_text("the same words here and there\n" * 20)
    done = engram(
        *("hash-stats", corpus, "--group-by", "file", "--out", "grouped", "--workspace", here)
    )
    assert done.code == 0, done.err
    assert "a\\nforged.txt" in done.out
    assert not [line for line in done.out.splitlines() if line.startswith("forged")]

"""A corpus format is one file and one registry line: this one is written here, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands.counted import run

from engram_cli.corpus.readers import READERS

SUBTITLES = """
from engram_cli.corpus.base import Document, Reader, Signs
from engram_cli.corpus.byte_stream import open_decompressed


def read(file, options):
    with open_decompressed(file) as (stream, spent):
        for number, cue in enumerate(stream.read().decode().split("\\n\\n")[1:]):
            yield Document(
                file=file.name,
                place=f"cue {number}",
                text=cue.split("\\n", 1)[1],
                first=True,
                size=spent(len(cue)),
            )


READER = Reader(read=read, signs=Signs(magic=(b"WEBVTT",), suffixes=(".vtt",)))
"""
FILM = """WEBVTT

00:01.000 --> 00:04.000
Only Alexander the Great could tame the horse Bucephalus.

00:05.000 --> 00:09.000
An apple fell from the tree."""


@pytest.fixture
def here(corpus_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "subtitles.py").write_text(SUBTITLES)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setitem(READERS._entries, "subtitles", "subtitles:READER")
    return corpus_workspace


def test_a_new_format_is_found_in_a_folder_by_its_suffix_and_counted(here: Path) -> None:
    films = here / "films"
    films.mkdir()
    (films / "film.vtt").write_text(FILM)
    (films / "film.json").write_text("{}")
    found = run(here, sources=(films,), out=here / "vtt-stats")
    assert (found.files, found.documents) == (1, 2)
    for number, text in enumerate(FILM.split("\n")[3::3]):
        (here / f"{number}.txt").write_text(text)
    same = run(here, sources=(here / "0.txt", here / "1.txt"), out=here / "txt-stats")
    assert (found.tokens, found.documents) == (same.tokens, same.documents)


def test_a_new_format_is_found_by_its_first_bytes_and_named_in_the_help(here: Path) -> None:
    (here / "film").write_text(FILM)
    assert run(here, sources=(here / "film",), out=here / "vtt-stats").documents == 2
    assert READERS.choices().endswith("mds or subtitles")

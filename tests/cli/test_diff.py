"""diff as users type it: exit codes as those of diff(1), JSON, and lines of at most 100 columns."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest
import zarr
from cli.conftest import Engram
from small_tokenizers import byte_level_tokenizer

TEXT = "Only Alexander the Great could tame the horse"
BUILD = ("build-table", "--dtype", "float32", "-q")


@pytest.fixture
def edited(engram: Engram) -> Engram:
    """A folder with a table, and a copy of it with some rows changed."""
    byte_level_tokenizer().save(str(engram.folder / "tokenizer.json"))
    (engram.folder / "corpus.txt").write_text(f"{TEXT} Bucephalus.\n" * 3, encoding="utf-8")
    geometry = ("--rows-per-head", "40", "--layers", "1", "--heads", "2", "-q")
    for command in (("compress-vocab",), ("hash-stats", "corpus.txt", *geometry), BUILD):
        done = engram(*command)
        assert done.code == 0, done.err
    shutil.copytree(engram.folder / "engram-table.zarr", engram.folder / "edited.zarr")
    array: Any = zarr.open_array(engram.folder / "edited.zarr" / "1", mode="r+")
    array[:60] = 2 * array[:60]
    return engram


def test_changed_rows_are_exit_code_1(edited: Engram) -> None:
    done = edited("diff", "engram-table.zarr", "edited.zarr", "--verbose", "--report", "diff.html")
    assert done.code == 1, done.err
    assert max(map(len, done.out.splitlines())) <= 100
    assert "60 rows of" in " ".join(done.out.split())
    assert "2-grams whose rows changed in all heads" in " ".join(done.out.split())
    assert "Most changed rows" in " ".join(done.out.split())
    assert "statistics: engram-stats (found next to the artifact)" in done.err
    assert "written: diff.html" in done.err
    page = (edited.folder / "diff.html").read_text(encoding="utf-8")
    assert "Rows by head" in page
    assert re.search(r"<caption>\d+ 2-grams? whose rows changed in all heads</caption>", page)
    assert re.search(r'<p class="note">[^<]*rows explained', page)


def test_only_the_terminal_names_the_option_for_more_ngrams(edited: Engram) -> None:
    done = edited("diff", "engram-table.zarr", "edited.zarr", "--ngrams", "1", "--report", "d.html")
    assert re.search(r"\d+ more with --ngrams", " ".join(done.out.split()))
    page = (edited.folder / "d.html").read_text(encoding="utf-8")
    assert re.search(r"\d+ more are not listed", page)
    assert "--ngrams" not in page


def test_nothing_changed_is_exit_code_0(edited: Engram) -> None:
    done = edited("diff", "edited.zarr", "edited.zarr")
    assert (done.code, done.err) == (0, "")
    assert "are equal" in " ".join(done.out.split())
    copied = edited("convert", "engram-table.zarr", "-o", "copy.zarr", "--dtype", "int8", "-q")
    assert copied.code == 0, copied.err
    done = edited("diff", "engram-table.zarr", "copy.zarr")
    assert done.code == 0
    assert "no more than the codec's error (float32 and int8): that is no change." in " ".join(
        done.out.split()
    )


def test_what_cannot_be_compared_is_exit_code_2(edited: Engram) -> None:
    other = ("--vocab", "engram-vocab.parquet", "--rows-per-head", "50", "--out", "other.zarr")
    assert edited(*BUILD, *other).code == 0
    done = edited("diff", "engram-table.zarr", "other.zarr")
    assert done.code == 2
    assert "has layout" in done.error_line
    assert edited("diff", "engram-table.zarr", "nothing.zarr").code == 2
    assert edited("diff", "engram-table.zarr").code == 2


def test_diff_speaks_json(edited: Engram) -> None:
    corpus = ("--corpus", "corpus.txt", "--ngrams", "1000")
    done = edited("diff", "engram-table.zarr", "edited.zarr", "--json", *corpus)
    assert (done.code, done.err) == (1, "")
    document = json.loads(done.out)
    assert (document["verdict"], document["changed"], document["within"]) == ("changed", 60, 0)
    assert document["named_by"] == "corpus.txt"
    first = document["ngrams"][0]
    assert first["order"] == 2
    assert 0 < first["found"] == len(first["listed"])
    assert all(each["exact"] for each in first["listed"])
    assert first["listed"][0]["count"] == max(each["count"] for each in first["listed"]) >= 3

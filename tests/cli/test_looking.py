"""lookup and verify as users type them: exit codes, JSON, and lines of at most 100 columns."""

from __future__ import annotations

import json
import shutil

import pytest
from cli.conftest import Engram
from small_tokenizers import byte_level_tokenizer

TEXT = "Only Alexander the Great could tame the horse"


@pytest.fixture
def filled(engram: Engram) -> Engram:
    """A folder with all four artifacts."""
    byte_level_tokenizer().save(str(engram.folder / "tokenizer.json"))
    (engram.folder / "corpus.txt").write_text(f"{TEXT} Bucephalus.\n" * 3, encoding="utf-8")
    geometry = ("--rows-per-head", "40", "--layers", "1", "-q")
    for command in (
        ("compress-vocab",),
        ("hash-stats", "corpus.txt", *geometry),
        ("build-table", "-q"),
    ):
        done = engram(*command)
        assert done.code == 0, done.err
    return engram


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_lookup_fits_a_terminal(filled: Engram) -> None:
    done = filled("lookup", "engram-table.zarr", TEXT, "--against", "the horse")
    assert done.code == 0, done.err
    assert widest(done.out) <= 100
    assert "Rows that both texts use" in done.out
    assert "Known n-grams on the same rows" in done.out
    assert "statistics: engram-stats (found next to the artifact)" in done.err


def test_wide_norms_leave_the_labels(filled: Engram) -> None:
    wide = ("build-table", "--std", "123456", "--heads", "8", "--out", "wide.zarr", "-q")
    assert filled(*wide).code == 0
    done = filled("lookup", "wide.zarr", TEXT)
    lines = [line.split() for line in done.out.splitlines()]
    assert widest(done.out) <= 100
    assert sum("norm" in line for line in lines) > 16  # each order of each token
    assert any(line[:2] == ["token", "n"] for line in lines)


def test_lookup_speaks_json(filled: Engram) -> None:
    done = filled("lookup", "engram-stats", "--ids", "5,6,7", "--json")
    document = json.loads(done.out)
    assert [token["token_id"] for token in document["tokens"]] == [5, 6, 7]
    assert document["tokens"][0]["orders"][0]["heads"][0]["norm"] is None
    assert done.err == ""


def test_verify_says_one_line_and_leaves_with_nothing(filled: Engram) -> None:
    for path in ("engram-table.zarr", "engram-stats", "engram-vocab.parquet"):
        done = filled("verify", path)
        assert done.code == 0, done.out
        assert "all right" in done.out
        assert len(done.out.splitlines()) == 1
        assert widest(done.out) <= 100


def test_verify_leaves_with_one_and_the_list(filled: Engram) -> None:
    chunk = filled.folder / "engram-table.zarr" / "1" / "c.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\x01")
    done = filled("verify", "engram-table.zarr")
    assert done.code == 1
    assert "1 thing wrong" in done.out
    assert "1/c.0.0" in done.out
    as_json = filled("verify", "engram-table.zarr", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["ok"] is False


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (("verify", "nowhere"), "nowhere does not exist"),
        (("verify", "corpus.txt"), "corpus.txt was not written by engram"),
        (("lookup", "nowhere", "a"), "nowhere does not exist"),
        (("lookup", "engram-table.zarr"), "either a text or ids"),
        (("lookup", "engram-table.zarr", "a", "--heads", "2"), "has its own geometry"),
    ],
)
def test_bad_input_is_one_line(filled: Engram, command: tuple[str, ...], match: str) -> None:
    done = filled(*command)
    assert done.code == 2
    assert match in done.error_line


def test_a_text_without_its_tokenizer_is_refused(filled: Engram) -> None:
    (filled.folder / "tokenizer.json").unlink()
    done = filled("lookup", "engram-table.zarr", TEXT)
    assert done.code == 2
    assert "a text was given, and the tokenizer" in done.error_line
    shutil.rmtree(filled.folder / "engram-stats")
    assert filled("lookup", "engram-table.zarr", "--ids", "5,6").code == 0


@pytest.mark.parametrize("path", ["engram-table.zarr", "engram-stats", "engram-vocab.parquet"])
def test_inspect_fits_a_terminal_and_speaks_json(filled: Engram, path: str) -> None:
    done = filled("inspect", path)
    assert done.code == 0, done.err
    assert widest(done.out) <= 100
    document = json.loads(filled("inspect", path, "--json").out)
    assert document["path"] == path
    page = filled("inspect", path, "--report", "page.html", "--force")
    assert page.code == 0, page.err
    assert (filled.folder / "page.html").stat().st_size > 10_000


def test_a_plan_is_built_as_planned(filled: Engram) -> None:
    done = filled("plan", "--memory", "30KB", "--dim", "4", "--out", "plan.json")
    assert done.code == 0, done.err
    assert widest(done.out) <= 100
    assert "next: engram build-table --plan plan.json" in done.err
    built = filled("build-table", "--plan", "plan.json", "-o", "planned.zarr", "--json")
    assert built.code == 0, built.err
    said = json.loads((filled.folder / "plan.json").read_bytes())
    plan = json.loads(built.out)["plan"]
    assert (plan["total_bytes"], plan["fingerprint"], plan["dim"]) == (
        said["total_bytes"],
        said["fingerprint"],
        4,
    )
    both = filled("build-table", "--plan", "plan.json", "--preset", "engram-27b", "-o", "x.zarr")
    assert "both --plan and --preset" in both.error_line
    document = json.loads(filled("plan", "--sparse-params", "1M", "--json").out)
    assert document["params"] <= 225_000
    wrong = filled("plan", "--hardware", "abacus")
    assert "unknown hardware 'abacus'" in wrong.error_line


def test_a_probe_fits_a_terminal_speaks_json_and_is_drawn(filled: Engram) -> None:
    sentence = f"{TEXT} Bucephalus and rode away.\n"
    (filled.folder / "many.txt").write_text(sentence * 30, encoding="utf-8")
    (filled.folder / "heldout.txt").write_text(sentence * 4, encoding="utf-8")
    built = filled("build-table", "--init", "next-token", "--corpus", "many.txt", "-o", "n.zarr")
    assert built.code == 0, built.err
    asked = ("inspect", "n.zarr", "--probe", "heldout.txt")
    done = filled(*asked, "--corpus", "many.txt", "--report", "page.html")
    assert done.code == 0, done.err
    assert widest(done.out) <= 100
    assert "table, combined" in done.out
    assert "next-token of" in done.out
    page = (filled.folder / "page.html").read_text(encoding="utf-8")
    assert "What the table knows" in page
    document = json.loads(filled(*asked, "--corpus", "many.txt", "--no-rows", "--json").out)
    assert document["probe"]["rows"][0]["model"] == "unigram"
    assert document["columns"] == []
    for wrong, match in (
        (asked, "--probe without a corpus"),
        ((*asked, "--corpus", "heldout.txt"), "was filled from"),
        (("inspect", "n.zarr", "--corpus", "many.txt"), "give one with --probe"),
        (("inspect", "engram-stats", *asked[2:], "--corpus", "many.txt"), "--probe needs a table"),
    ):
        refused = filled(*wrong)
        assert refused.code == 2
        assert match in refused.error_line


def test_a_probe_says_its_tokenizer_once(engram: Engram) -> None:
    byte_level_tokenizer().save(str(engram.folder / "tokenizer.json"))
    (engram.folder / "corpus.txt").write_text(f"{TEXT} Bucephalus.\n" * 9, encoding="utf-8")
    (engram.folder / "held.txt").write_text(f"{TEXT} Alexander.\n" * 9, encoding="utf-8")
    corpus = ("--corpus", "corpus.txt")
    geometry = ("--rows-per-head", "40", "--layers", "1", "--dim", "4")
    engram("compress-vocab")
    built = engram("build-table", "--init", "next-token", *corpus, *geometry)
    assert built.code == 0, built.err
    table = "engram-table.zarr"
    done = engram("inspect", table, "--no-rows", "--probe", "held.txt", *corpus)
    assert done.code == 0, done.err
    assert done.err.count("tokenizer: tokenizer.json") == 1

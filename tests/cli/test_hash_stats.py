"""Growth and locality as shown: what rows are said to be enough, within 100 columns."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.numbers import brief
from engram_cli.stats.sampling.ideal import ideal_shared, rows_for

GEOMETRY = ["--scheme", "tutorial", "--vocab-size", "3000", "--heads", "2", "--layers", "1"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    weights = 1.0 / np.arange(1, 3001)
    ids = np.random.default_rng(1).choice(3000, (400, 100), p=weights / weights.sum())
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))
    return tmp_path


def run(corpus: Path, *more: str) -> str:
    arguments = ["hash-stats", str(corpus / "ids.npy"), *GEOMETRY, *more]
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(corpus), "--force"])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_default_shows_growth_and_no_locality(corpus: Path) -> None:
    shown = run(corpus)
    assert "How many rows are enough" in shown
    assert "How hot" not in shown
    assert "100 times" in shown
    document = json.loads((corpus / "engram-stats" / "stats.json").read_text())
    assert "locality" not in document
    assert document["growth"][0]["tokens"][-1] == 40_000


@pytest.mark.parametrize("option", [("--sample-size", "1000"), ("--exact",)])
def test_this_corpus_has_the_ngrams_of_the_ngrams_table(
    corpus: Path, option: tuple[str, ...]
) -> None:
    """The curve follows fewer n-grams, and would say another number."""
    shown = [line.split() for line in run(corpus, *option).splitlines()]
    document = json.loads((corpus / "engram-stats" / "stats.json").read_text())
    for entry, curve in zip(document["orders"], document["growth"], strict=True):
        assert entry["distinct"] != curve["distinct"][-1]
        [row] = [
            w for w in shown if w[:1] == [f"{entry['order']}"] and w[1:3] == ["this", "corpus"]
        ]
        assert row[3:5] == ["40", "k"]
        assert " ".join(row[5:7]) == brief(entry["distinct"]).replace("\u202f", " ")
        assert row[7] == f"{100 * entry['distinct_error'] / entry['distinct']:.1f}"


def test_json_has_the_verdict_of_what_was_counted_merged_and_changed(corpus: Path) -> None:
    document = json.loads(run(corpus, "--json"))
    verdict, rows = document["verdict"], document["verdict"]["figures"]["total_rows"]
    assert verdict["headline"].startswith("The table is ")
    used = sum(each["occupied"] for each in document["columns"])
    assert verdict["figures"]["used"] == pytest.approx(used / rows)
    assert [set(each) for each in verdict["next"]] == [{"command", "gives"}] * 3
    stats, out = str(corpus / "engram-stats"), ["--out", str(corpus / "out"), "--force", "--json"]
    other = str(shutil.copytree(stats, corpus / "other"))
    for more in (["--merge", stats, other], ["--to", stats, "--add", str(corpus / "ids.npy")]):
        done = CliRunner().invoke(app, ["hash-stats", *more, *out, "--workspace", str(corpus)])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["verdict"]["figures"]["total_rows"] == rows


def test_no_growth_leaves_it_out(corpus: Path) -> None:
    assert "How many rows" not in run(corpus, "--no-growth")
    assert "growth" not in json.loads((corpus / "engram-stats" / "stats.json").read_text())


def test_a_held_out_part_is_looked_up_beside_the_rest(corpus: Path) -> None:
    shown = run(corpus, "--holdout", "0.25")
    document = json.loads((corpus / "engram-stats" / "stats.json").read_text())
    held = document["locality"]["held_out_tokens"]
    assert document["tokens"] + held == 40_000
    assert held > 0
    assert f"{held:,} held-out tokens" in shown
    [head] = [line for line in shown.splitlines() if line.startswith("held out ")]
    assert f"{held:,} tokens ({held / 400:.1f}\u202f%)" in head
    hot = document["locality"]["hot"][0]
    at = hot["rows_share"].index(0.2)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for name, key in (("counted", "counted"), ("held out", "held_out")):
        [line] = [each for each in lines if each.startswith(f"1 {hot['order']} {name} ")]
        assert line.endswith(f"{100 * hot[key][at]:.1f} %")


def test_a_share_that_cannot_be_is_refused(corpus: Path) -> None:
    arguments = ["hash-stats", str(corpus / "ids.npy"), *GEOMETRY, "--holdout", "1.5"]
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(corpus)])
    assert result.exit_code != 0
    assert "--holdout 1.5" in re.sub(r"\s+", " ", result.output)


def test_lines_fit(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = run(corpus, "--holdout", "0.25")
    lines = [line for line in shown.splitlines() if not line.startswith(("next: ", "or: "))]
    assert len(lines) > 40
    assert max(map(len, lines)) <= 100  # a command stays whole, to be copied
    assert Console(width=100).width == 100


def test_rows_for_a_share_give_that_share() -> None:
    for share in (0.1, 0.5):
        rows = rows_for(1e6, share)
        assert ideal_shared(round(rows), 1e6) == pytest.approx(share, rel=1e-5)

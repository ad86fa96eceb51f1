"""engram.toml beside flags that name a geometry, and the words for what is wrong in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import Engram
from small_tokenizers import PROSE

LAYOUT = '[layout]\nrows-per-head = "500"\nheads = 2\nlayers = [2]\n'
SETTINGS = LAYOUT + "[build-table]\ndim = 4\n"


@pytest.fixture
def ready(engram: Engram, tokenizer_file: Path) -> Engram:
    """A folder with a vocabulary and a corpus."""
    shutil.copy(tokenizer_file, engram.folder / "tokenizer.json")
    (engram.folder / "corpus.txt").write_text("\n".join(PROSE * 40), encoding="utf-8")
    assert engram("compress-vocab", "-q").code == 0
    return engram


def planned(engram: Engram, *arguments: object) -> dict[str, object]:
    done = engram("build-table", "--dry-run", "--json", *arguments)
    assert done.code == 0, done.err
    plan: dict[str, object] = json.loads(done.out)["plan"]
    return {name: value for name, value in plan.items() if name != "free_bytes"}


def test_a_preset_and_a_plan_win_over_engram_toml(ready: Engram) -> None:
    sizes = ("--rows-per-head", "900", "--heads", "4", "--layers", "1", "--tokens", "1000")
    assert ready("plan", *sizes, "--dim", "8", "--out", "plan.json", "-q").code == 0
    asked = [("--preset", "engram-v1-demo"), ("--plan", "plan.json")]
    without = [planned(ready, *source) for source in asked]
    (ready.folder / "engram.toml").write_text(SETTINGS)
    assert [planned(ready, *source) for source in asked] == without
    assert planned(ready, *asked[1], "--heads", "3")["heads"] == 3
    assert planned(ready)["heads"] == 2
    assert planned(ready)["dim"] == 4


def test_the_eos_of_a_preset_ends_documents(engram: Engram) -> None:
    """In the corpus that is counted as in the one that fills rows."""
    np.array([5, 248_044, 6, 7], np.uint32).tofile(engram.folder / "ids.bin")
    sizes = ("--preset", "qwen-ple", "--rows-per-head", "50", "--ids-dtype", "uint32")
    counted = engram("hash-stats", "ids.bin", *sizes)
    built = engram(
        "build-table", *sizes, "--dim", "4", "--init", "token-mean", "--corpus", "ids.bin"
    )
    for done in (counted, built):
        assert done.code == 0, done.err
        assert "token 248044 ends a document" in done.err


def test_counting_with_a_preset_is_not_changed_by_engram_toml(ready: Engram) -> None:
    (ready.folder / "engram.toml").write_text(LAYOUT)
    done = ready("hash-stats", "corpus.txt", "--preset", "engram-v1-demo", "--json")
    assert json.loads(done.out)["layers"] == [1, 15]


def test_training_a_given_bundle_leaves_out_the_layout_of_engram_toml(ready: Engram) -> None:
    (ready.folder / "engram.toml").write_text(LAYOUT + "[train]\ndim = 4\n")
    (ready.folder / "ckpt" / "engram").mkdir(parents=True)
    asked = ("train", "ckpt", "corpus.txt", "--held-out", "held.txt", "--bundle", "ckpt/engram")
    assert "has no config.json" in ready(*asked).err  # all options were taken
    assert "--bundle with options of a new table" in ready(*asked, "--heads", "3").err


def test_a_layout_in_engram_toml_is_left_out_where_it_does_not_belong(ready: Engram) -> None:
    small = ("--rows-per-head", "900", "--layers", "1", "-q")
    assert ready("build-table", *small, "--dim", "4").code == 0
    (ready.folder / "engram.toml").write_text(LAYOUT)
    found = ready("lookup", "engram-table.zarr", "some text", "--json")
    assert found.code == 0, found.err
    bare = ready("lookup", "engram-vocab.parquet", "some text", "--json")
    assert bare.code == 0, bare.err
    budget = ready("plan", "--memory", "1MB", "--tokens", "1000", "--json")
    assert budget.code == 0, budget.err
    given = ready("lookup", "engram-table.zarr", "some text", "--heads", "3")
    assert "has its own geometry (heads was given)" in given.error_line


def test_names_are_those_of_the_options(ready: Engram) -> None:
    (ready.folder / "engram.toml").write_text(
        '[hash-stats]\nformat = "text"\njson = true\nrows-per-head = "500"\nlayers = [1]\n'
    )
    assert json.loads(ready("hash-stats", "corpus.txt").out)["layers"] == [1]
    (ready.folder / "engram.toml").write_text('[hash-stats]\nformat- = "text"\n')
    line = ready("hash-stats", "corpus.txt").error_line
    assert "has no option 'format-'" in line
    assert " format," in line


def test_the_next_command_knows_where_things_were_put(ready: Engram) -> None:
    sizes = ("--rows-per-head", "500", "--layers", "1")
    counted = ready("hash-stats", "corpus.txt", *sizes, "--out", "other")
    assert "next: engram build-table --stats other" in counted.err
    built = ready("build-table", "--stats", "other", "--dim", "4", "--out", "t.zarr")
    assert "next: engram attach ckpt/ --table t.zarr" in built.err

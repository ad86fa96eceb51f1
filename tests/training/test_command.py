"""engram train: what it prints, and the bundle that it makes from the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import PROSE
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.evaluate.command import evaluate
from engram_cli.commands.evaluate.page import evaluation_views
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import train
from engram_cli.formats.bundle import read_bundle
from engram_cli.view import Table


def rows_of(folder: Path) -> Any:
    """The rows of a bundle's first layer."""
    bundle = read_bundle(folder)
    return np.concatenate([np.array(m) for m in bundle.maps(bundle.spec.layers[0], "rows")])


def test_a_bundle_is_made_from_the_text(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["train", str(checkpoint), str(texts[0]), "--held-out", str(texts[1])]
    arguments += ["--steps", "6", "--batch", "4", "--length", "16", "--dim", "4", "--device", "cpu"]
    arguments += ["--rows-per-head", "97", "--layers", "0,1,3", "-o", str(tmp_path / "run")]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["outcome"]["lines"][1]["difference"] < 0
    spec = read_bundle(tmp_path / "run" / "engram").spec
    assert (spec.layers, spec.dim, spec.dtype) == ((0, 1, 3), 4, "float32")
    start = rows_of(tmp_path / "run" / "work" / "engram")
    assert np.count_nonzero(start.any(axis=1)) > 100  # next-token rows
    shown = CliRunner().invoke(app, arguments)  # it is finished
    assert shown.exit_code == 0, shown.output
    for word in ("model alone", "memory", "95 % interval", "is finished"):
        assert word in shown.output
    packed = np.fromfile(tmp_path / "run" / "work" / "train.u32", dtype="<u4")
    assert np.count_nonzero(packed == 1) == 60  # </s> after each of the documents


class Listener:
    """Keeps the notes, and for each piece of work its total and how much was done."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.work: list[tuple[str, int | None, list[int]]] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.work.append((what, total, []))

    def advance(self, amount: int) -> None:
        self.work[-1][2].append(amount)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_it_reports_and_that_evaluate_uses_its_statistics(
    checkpoint: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engram_cli.corpus.encode._fast_is_installed", lambda: False)
    listener, out = Listener(), tmp_path / "run"
    train(
        TrainRequest(
            checkpoint=checkpoint,
            sources=(texts[0],),
            held_out=(texts[1],),
            out=out,
            device="cpu",
            steps=2,
            batch=4,
            length=16,
            dim=4,
            geometry=Geometry(rows_per_head=(3,), layers=(1,)),
        ),
        listener,
    )
    assert sum("is much faster" in note for note in listener.notes) == 1
    measured = [(total, sum(done)) for what, total, done in listener.work if "held-out" in what]
    assert measured
    assert all(total == done for total, done in measured)
    other = tmp_path / "other.txt"
    other.write_text(f"{PROSE[0]} {PROSE[0][::-1]} {PROSE[1]}")
    request = EvaluateRequest(checkpoint=checkpoint, sources=(other,), bundle=out, device="cpu")
    found = evaluate(request)
    assert (found.statistics, found.exact) == (out / "work" / "engram-stats", True)
    before = found.breakdowns[0].parts
    assert 0 < before[-1].tokens < found.scored
    (out / "work").rename(tmp_path / "elsewhere")
    bounds = evaluate(request)  # by the hits of rows, most of which are full
    assert (bounds.statistics, bounds.exact) == (out / "engram", False)
    assert bounds.breakdowns[0].parts[-1].tokens > before[-1].tokens
    parts = [part for view in evaluation_views(bounds) for part in view.parts]
    noted = [part.note for part in parts if isinstance(part, Table) and "n-gram" in part.title]
    assert all("upper bounds" in note for note in noted)
    assert len(noted) == 2


def test_a_dry_run_says_what_it_would_take(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["train", str(checkpoint), str(texts[0]), "--held-out", str(texts[1]), "--dry-run"]
    arguments += ["--steps", "7", "-o", str(tmp_path / "run"), "--device", "cpu", "--length", "16"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "7 steps of 64 tokens" in " ".join(shown.output.split())
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_one_line(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["train", str(checkpoint), str(texts[0]), "--held-out", str(texts[1])]
    found = CliRunner().invoke(
        app, [*arguments, "--full", "--lora", "4", "-o", str(tmp_path / "r")]
    )
    assert found.exit_code == 2
    assert "both --full and --lora" in found.output
    assert found.output.count("\n") == 1


def test_a_file_is_not_trained_on_and_held_out(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    link = tmp_path / "other-name.jsonl"
    link.symlink_to(texts[0])
    arguments = ["train", str(checkpoint), str(texts[0]), "-o", str(tmp_path / "run")]
    for more in ([], ["--dry-run"]):
        held_out = ["--held-out", str(texts[1]), "--held-out", str(link)]
        found = CliRunner().invoke(app, [*arguments, *held_out, *more])
        assert found.exit_code == 2
        assert "would be trained on and held out" in found.output
    assert not (tmp_path / "run").exists()


def test_a_copied_text_is_not_held_out(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    arguments = ["train", str(checkpoint), str(texts[0]), "-o", str(tmp_path / "run")]
    arguments += ["--bundle", str(bundle), "--steps", "1", "--length", "16", "--device", "cpu"]
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(texts[0].read_bytes())
    for more in ([], ["--dry-run"]):
        found = CliRunner().invoke(app, [*arguments, "--held-out", str(copy), *more])
        assert found.exit_code == 2
        assert f"is a copy of {texts[0]}" in found.output.replace("\n", "")
        assert not (tmp_path / "run").exists()
    lines = texts[0].read_text(encoding="utf-8").splitlines(keepends=True)
    own = texts[1].read_text(encoding="utf-8")
    copy.write_text("".join(lines[:40]) + own, encoding="utf-8")  # most of it
    found = CliRunner().invoke(app, [*arguments, "--held-out", str(copy)])
    assert found.exit_code == 2
    assert "40 of 52 held-out documents" in found.output
    copy.write_text("".join(lines[:2]) + own, encoding="utf-8")
    found = CliRunner().invoke(app, [*arguments, "--held-out", str(copy)])
    assert found.exit_code == 0, found.output
    assert "2 of 14 held-out documents" in found.output
    assert "of the held-out tokens are in the training text" in found.output
    said = json.loads((tmp_path / "run" / "work" / "overlap.json").read_text())
    count = len(tokens_of(tmp_path / "run" / "work" / "held-out.u32"))
    shared = len(tokens_of(tmp_path / "run" / "work" / "train.u32", documents=2))
    assert said == {"documents": 2, "compared": 14, "share": shared / count}


def tokens_of(packed: Path, documents: int | None = None) -> Any:
    """The tokens of the first documents of a packed file, without those that end documents."""
    ids = np.fromfile(packed, dtype="<u4")
    if documents is not None:
        ids = ids[: np.flatnonzero(ids == 1)[documents - 1]]
    return ids[ids != 1]


def test_held_out_text_that_cannot_be_read_may_be_replaced(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "a word"}\n{"content": "another"}\n')
    arguments = ["train", str(checkpoint), str(texts[0]), "-o", str(tmp_path / "run")]
    arguments += ["--bundle", str(bundle), "--steps", "1", "--length", "16", "--device", "cpu"]
    found = CliRunner().invoke(app, [*arguments, "--held-out", str(wrong)])
    assert found.exit_code == 2
    assert "has no field 'text'" in found.output
    found = CliRunner().invoke(app, [*arguments, "--held-out", str(texts[1])])
    assert found.exit_code == 0, found.output
    found = CliRunner().invoke(app, [*arguments, "--held-out", str(wrong)])
    assert found.exit_code == 2
    assert "is a finished run with another --held-out" in found.output


def test_the_help_names_each_default_once_and_joins_lines() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert "The same command resumes an interrupted run." in shown
    for name in ("--out", "--lr", "--rows-lr", "--lora-lr", "--full-lr", "--patience"):
        (line,) = [each for each in shown.splitlines() if f" {name} " in each]
        value = line.rpartition("[default: ")[2].partition("]")[0]
        assert line.count(value) == 1, line

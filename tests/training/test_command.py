"""engram train: what it prints, and the bundle that it makes from the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.formats.bundle import read_bundle


def rows_of(folder: Path) -> Any:
    """The rows of a bundle's first layer."""
    bundle = read_bundle(folder)
    return np.concatenate([np.array(m) for m in bundle.maps(bundle.spec.layers[0], "rows")])


def test_a_bundle_is_made_from_the_text(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["train", str(checkpoint), str(texts[0]), "--held-out", str(texts[1])]
    arguments += ["--steps", "6", "--batch", "4", "--length", "16", "--dim", "4", "--device", "cpu"]
    arguments += ["--rows-per-head", "97", "--layers", "1", "-o", str(tmp_path / "run")]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["outcome"]["lines"][1]["difference"] < 0
    spec = read_bundle(tmp_path / "run" / "engram").spec
    assert (spec.layers, spec.dim, spec.dtype) == ((1,), 4, "float32")
    start = rows_of(tmp_path / "run" / "work" / "engram")
    assert np.count_nonzero(start.any(axis=1)) > 100  # next-token rows
    shown = CliRunner().invoke(app, arguments)  # it is finished
    assert shown.exit_code == 0, shown.output
    for word in ("model alone", "memory", "95 % interval", "is finished"):
        assert word in shown.output
    packed = np.fromfile(tmp_path / "run" / "work" / "train.u32", dtype="<u4")
    assert np.count_nonzero(packed == 1) == 60  # </s> after each of the documents


def test_a_dry_run_says_what_it_would_take(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["train", str(checkpoint), str(texts[0]), "--held-out", str(texts[1]), "--dry-run"]
    arguments += ["--steps", "7", "-o", str(tmp_path / "run"), "--device", "cpu", "--length", "16"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "7 of 64 tokens" in " ".join(shown.output.split())
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

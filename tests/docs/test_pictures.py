"""Pictures are those that their scripts make, and pages say what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import runner
from docs.blocks import ROOT
from docs.loss_picture import PICTURE, losses, picture

from docs import how_fast, scaling_picture


def test_the_picture_of_the_loss_is_that_of_its_script() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "python tests/docs/loss_picture.py"


def test_the_picture_of_scaling_is_that_of_its_script() -> None:
    shown = scaling_picture.PICTURE.read_text(encoding="utf-8")
    assert shown == scaling_picture.picture(), "python tests/docs/scaling_picture.py"


def test_the_page_of_limits_is_that_of_its_script() -> None:
    shown = how_fast.PAGE.read_text(encoding="utf-8")
    assert shown == how_fast.page(), "python tests/docs/how_fast.py"


def test_the_page_of_benchmarks_is_that_of_its_results() -> None:
    shown = runner.PAGE.read_text(encoding="utf-8")
    assert shown == runner.page(), "python tests/benchmarks/runner.py"


@pytest.mark.parametrize("path", sorted(runner.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_result_of_a_benchmark_is_on_the_page(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"benchmark", "about", "machine", "versions", "commit"} <= set(result)
    assert any(result.get(name) for name in ("cases", "table", "rows"))
    assert "\n\n".join(runner.shown(path.stem, result)) in runner.PAGE.read_text(encoding="utf-8")


def test_no_stage_is_faster_than_bytes_can_move() -> None:
    stages = {each.name: each for each in how_fast.gpu()}
    for name in ("Look-up in HBM, 16,384 tokens", "Rows over two GPUs, 16,384 tokens on each"):
        assert 0.1 < stages[name].share < 1
    for each in (*how_fast.cpu(), *stages.values()):
        assert each.limit > 0
        assert each.measured > 0
        assert (how_fast.RESULTS / f"{each.source}.json").exists()


def test_pages_give_its_figures_as_text() -> None:
    bare, methods = losses()
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        found = re.search(r"!\[(.*?)\]\([a-z/]*loss\.svg\)", page.read_text(encoding="utf-8"))
        assert found is not None
        shown = re.findall(r"\d\.\d{3}", found[1])
        assert shown == [f"{loss:.3f}" for loss in (bare, *(each[2] for each in methods))]


def test_every_picture_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    for path in (ROOT / "docs" / "pictures").iterdir():
        assert f"pictures/{path.name}" in text

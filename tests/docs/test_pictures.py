"""Pictures are those that their scripts make, and pages say what they show."""

from __future__ import annotations

import re

from docs.blocks import ROOT
from docs.loss_picture import PICTURE, losses, picture


def test_the_picture_of_the_loss_is_that_of_its_script() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "python tests/docs/loss_picture.py"


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

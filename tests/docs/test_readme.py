"""The README as PyPI shows it, and its two promises."""

from __future__ import annotations

import re
import runpy

from docs.blocks import ROOT
from markdown_it import MarkdownIt

README = (ROOT / "README.md").read_text(encoding="utf-8")


def targets(text: str) -> list[str]:
    """The addresses of all links and pictures of a page."""
    tokens = [inner for each in MarkdownIt().parse(text) for inner in each.children or ()]
    tokens += [each for each in MarkdownIt().enable("table").parse(text) if each.children]
    found = [inner for each in tokens for inner in (each.children or (each,))]
    return [str(each.attrs.get("href") or each.attrs.get("src")) for each in found
            if each.type in ("link_open", "image")]  # fmt: skip


def test_links_on_pypi_are_absolute() -> None:
    absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]
    assert absolute(README, None) == README
    before, after = targets(README), targets(absolute(README, "https://example.org/engram/"))
    relative = [each for each in before if not each.startswith(("https://", "#"))]
    assert len(relative) > 15
    assert all(each.startswith(("https://", "#")) for each in after)
    assert len(after) == len(before)
    assert "https://example.org/engram/raw/HEAD/docs/pictures/loss.svg" in after
    assert "https://example.org/engram/blob/HEAD/docs/guides/train.md" in after


def test_relative_links_lead_to_files() -> None:
    for each in targets(README):
        if not each.startswith(("https://", "#")):
            assert (ROOT / each.partition("#")[0]).exists(), each


def test_the_two_promised_commands_are_there() -> None:
    assert "\npython -m pip install '.[demo]' && engram demo\n" in README
    assert "\npython -m pip install -e '.[test]' && pytest\n" in README


def test_the_first_screen_has_one_picture_and_one_table() -> None:
    assert len(re.findall(r"!\[", README)) == 1
    assert len(re.findall(r"^\| --- ", README, re.M)) == 1

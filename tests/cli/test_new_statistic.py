"""A new statistic is one module and one line of the registry; nothing else knows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.conftest import Engram

from engram_cli.stats import STATISTICS

GEOMETRY = ("--scheme", "tutorial", "--vocab-size", "500", "--heads", "2", "--layers", "1")


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stats.json").read_text())
    return found


def test_it_is_in_the_terminal_the_json_the_page_and_merges(
    engram: Engram, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = engram.folder
    monkeypatch.setitem(STATISTICS._entries, "odd_tokens", "stats.odd_tokens:ODD_TOKENS")
    rng, odd = np.random.default_rng(1), {}
    (here / "corpus").mkdir()
    for name in ("one", "two"):
        ids = rng.integers(0, 500, (60, 40), dtype=np.int32)
        np.save(here / "corpus" / f"{name}.npy", ids)
        odd[name] = int(np.sum(ids % 2))
    both = sum(odd.values())

    # The terminal, stats.json and the page.
    whole = engram("hash-stats", "corpus", *GEOMETRY, "-o", "whole", "--report", "page.html")
    assert whole.code == 0, whole.err
    assert "Tokens with an odd id" in whole.out
    assert f"{both:,}" in whole.out
    assert document(here / "whole")["odd_tokens"] == {"odd": both, "tokens": 4800}
    page = (here / "page.html").read_text(encoding="utf-8")
    assert '<section id="odd-tokens"' in page
    assert '<figure id="odd"' in page

    # Other commands that go over the registry.
    assert "all right" in engram("verify", "whole").out
    assert engram("report", "whole", "-o", "again.html").code == 0
    again = (here / "again.html").read_text(encoding="utf-8")
    assert again.split("</header>")[1] == page.split("</header>")[1]  # the head names the corpus
    assert json.loads(engram("hash-stats", "corpus", *GEOMETRY, "--json", "--force").out)[
        "sections"
    ]["odd_tokens"] == {"odd": both, "tokens": 4800}

    # Partials merge.
    for name in odd:
        assert engram("hash-stats", f"corpus/{name}.npy", *GEOMETRY, "-o", name).code == 0
        assert document(here / name)["odd_tokens"]["odd"] == odd[name]
    merged = engram("hash-stats", "--merge", "one", "two", "-o", "merged")
    assert merged.code == 0, merged.err
    assert f"{both:,}" in merged.out
    assert document(here / "merged")["odd_tokens"] == {"odd": both, "tokens": 4800}
    assert "all right" in engram("verify", "merged").out

"""The opt-in tables of hash-stats fit 100 columns, whatever the names and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console

from engram_cli.cli.stats_sections import chosen_parts, clean_heads_part, ngram_parts


@dataclass
class Figures:
    sections: dict[str, Any]
    orders: tuple[Any, ...] = ()
    columns: tuple[Any, ...] = field(default=())


def lines_of(*parts: Any) -> list[str]:
    console = Console(width=100, file=StringIO())
    for part in parts:
        console.print(part)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_many_sources_with_long_names() -> None:
    names = [f"{'very/long/' * 8}folder{i}" for i in range(24)]
    share = [[1.0 if i == j else 0.995 for j in range(24)] for i in range(24)]
    section = {
        "names": names,
        "tokens": [10**12] * 24,
        "overlap": [{"order": 2, "share": share, "ngrams": share}],
    }
    lines = lines_of(*chosen_parts(Figures({"sources": section})))
    assert max(map(len, lines)) <= 100
    assert sum("folder8" in line for line in lines) == 1
    assert not any("folder9" in line for line in lines)
    assert any("15 more" in line for line in lines)


def test_ngrams_of_long_tokens() -> None:
    long = "␣".join(["word"] * 60)
    top = [{"order": 2, "exact": False, "ngrams": [{"text": long, "count": 10**12}] * 20}]
    row = {"layer": 30, "order": 2, "head": 11, "row": 10**9, "hits": 4 * 10**9}
    row["ngrams"] = [{"text": long, "count": 10**9}] * 4
    lines = lines_of(*ngram_parts(Figures({"top_ngrams": top, "worst_rows": [row] * 9})))
    assert max(map(len, lines)) <= 100
    assert any("of the sample" in line for line in lines)
    assert sum("4,000,000,000" in line for line in lines) == 3


def test_clean_heads_by_hand() -> None:
    entry = {
        "layer": 1,
        "order": 2,
        "ngrams": [0.25, 0.25, 0.5],
        "occurrences": [0.5, 0.5, 0.0],
        "ideal": [0.0, 0.0, 1.0],
        "purity": 0.75,
    }
    lines = lines_of(clean_heads_part(Figures({"clean_heads": [entry]})))
    (line,) = (each for each in lines if "of 2" in each)
    shown = "1 2 1.25 of 2 2.00 25.0 % 0.0 % 50.0 % 100.0 % 0.50 75.0 %"
    assert " ".join(line.split()) == shown

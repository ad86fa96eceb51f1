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
    error = [[0.0384] * 24] * 24
    section = {
        "names": names,
        "tokens": [10**12] * 24,
        "overlap": [{"order": 2, "share": share, "share_error": error, "ngrams": share}],
    }
    lines = lines_of(*chosen_parts(Figures({"sources": section})))
    assert max(map(len, lines)) <= 100
    assert sum("folder8" in line for line in lines) == 1
    assert not any("folder9" in line for line in lines)
    assert any("15 more" in line for line in lines)
    assert any("standard error up to 3.8" in line for line in lines)


def test_few_sources_show_the_error_of_each_share() -> None:
    share, error = [[1.0, 0.123], [0.5, 1.0]], [[0.0, 0.0041], [0.0, 0.0]]
    overlap = [{"order": 3, "share": share, "share_error": error, "ngrams": share}]
    section = {"names": ["a", "b"], "tokens": [10, 20], "overlap": overlap}
    lines = lines_of(*chosen_parts(Figures({"sources": section})))
    assert any("100 12.3 ±0.4" in " ".join(line.split()) for line in lines)
    assert any("20 50.0 100" in " ".join(line.split()) for line in lines)


def test_ngrams_of_long_tokens() -> None:
    long = "␣".join(["word"] * 60)
    ngrams = [{"text": long, "count": 10**12, "exact": False}] * 20
    top = [{"order": 2, "exact": False, "positions": 9, "excess": 12_345, "ngrams": ngrams}]
    row = {"layer": 30, "order": 2, "head": 11, "row": 10**9, "hits": 4 * 10**9}
    row["ngrams"] = [{"text": long, "count": 10**9, "exact": True}] * 4
    lines = lines_of(*ngram_parts(Figures({"top_ngrams": top, "worst_rows": [row] * 9})))
    assert max(map(len, lines)) <= 100
    assert any("too high by up to 12,345" in line for line in lines)
    assert any("≤ 1,000,000,000,000" in line for line in lines)
    assert not any("of the sample" in line for line in lines)
    assert sum("4,000,000,000" in line for line in lines) == 3


def test_ngrams_of_an_earlier_version_say_that_they_are_those_of_a_sample() -> None:
    ngrams = [{"text": "a b", "count": 10, "exact": True}]
    top = [{"order": 2, "exact": False, "positions": 0, "excess": 0, "ngrams": ngrams}]
    lines = lines_of(*ngram_parts(Figures({"top_ngrams": top, "worst_rows": []})))
    assert any("n-grams of the sample" in line for line in lines)


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

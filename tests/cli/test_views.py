"""Views on a terminal: their tables fit 100 columns, whatever the names and numbers."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from engram_cli.cli.views import printed
from engram_cli.stats import STATISTICS
from engram_cli.stats.results import draw_results
from engram_cli.stats.statistic import Results
from engram_cli.view import Column, Estimate, Table, View


def lines_of(**sections: Any) -> list[str]:
    """What the terminal prints of sections of a stats.json."""
    found = {key: STATISTICS.load(key).read(value) for key, value in sections.items()}
    return drawn(*draw_results(Results(tokens=100, documents=1, found=found)))


def drawn(*views: View, asked: bool = True) -> list[str]:
    console = Console(width=100, file=StringIO())
    for part in printed(views, asked=asked):
        console.print(part)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_many_sources_with_long_names() -> None:
    names = [f"{'very/long/' * 8}folder{i}" for i in range(24)]
    share = [[1.0 if i == j else 0.995 for j in range(24)] for i in range(24)]
    error = [[0.0384] * 24] * 24
    overlap = [{"order": 2, "share": share, "share_error": error, "ngrams": share}]
    lines = lines_of(sources={"names": names, "tokens": [10**12] * 24, "overlap": overlap})
    assert max(map(len, lines)) <= 100
    assert sum("folder8" in line for line in lines) == 1
    assert not any("folder9" in line for line in lines)
    assert any("15 more" in line for line in lines)
    assert any("standard error up to 3.8" in line for line in lines)


def test_few_sources_show_the_error_of_each_share() -> None:
    share, error = [[1.0, 0.123], [0.5, 1.0]], [[0.0, 0.0041], [0.0, 0.0]]
    overlap = [{"order": 3, "share": share, "share_error": error, "ngrams": share}]
    lines = lines_of(sources={"names": ["a", "b"], "tokens": [10, 20], "overlap": overlap})
    assert any("100 12.3 ±0.4" in " ".join(line.split()) for line in lines)
    assert any("20 50.0 100" in " ".join(line.split()) for line in lines)


def test_ngrams_of_long_tokens() -> None:
    long = "␣".join(["word"] * 60)
    ngrams = [{"text": long, "count": 10**12, "exact": False}] * 20
    top = [{"order": 2, "exact": False, "positions": 9, "excess": 12_345, "ngrams": ngrams}]
    row = {"layer": 30, "order": 2, "head": 11, "row": 10**9, "hits": 4 * 10**9}
    row["ngrams"] = [{"text": long, "count": 10**9, "exact": True}] * 4
    lines = lines_of(top_ngrams=top, worst_rows=[row] * 9)
    assert max(map(len, lines)) <= 100
    assert any("too high by up to 12,345" in line for line in lines)
    assert sum("≤\u00a01,000,000,000,000" in line for line in lines) == 10
    assert not any("of the sample" in line for line in lines)
    assert sum("4,000,000,000" in line for line in lines) == 3


def test_ngrams_of_an_earlier_version_say_that_they_are_those_of_a_sample() -> None:
    ngrams = [{"text": "a b", "count": 10, "exact": True}]
    top = [{"order": 2, "exact": False, "positions": 0, "excess": 0, "ngrams": ngrams}]
    assert any("of the sample" in line for line in lines_of(top_ngrams=top))


def test_clean_heads_by_hand() -> None:
    entry = {
        "layer": 1,
        "order": 2,
        "ngrams": [0.25, 0.25, 0.5],
        "occurrences": [0.5, 0.5, 0.0],
        "ideal": [0.0, 0.0, 1.0],
        "purity": 0.75,
    }
    lines = lines_of(clean_heads=[entry])
    shown = "1 2 2 1.25 2.00 25.0 % 0.0 % 50.0 % 100.0 % 0.50 75.0 %"
    assert shown in [" ".join(line.split()) for line in lines]


def test_what_is_shown_on_request_and_on_the_page_only() -> None:
    table = Table(title="a table", columns=(Column(name="n"),), rows=((1,),))
    views = [
        View(name=shown, title="", lead="", parts=(table,), shown=shown)
        for shown in ("always", "asked", "page")
    ]
    assert sum("a table" in line for line in drawn(*views, asked=False)) == 1
    assert sum("a table" in line for line in drawn(*views, asked=True)) == 2


def test_cells_as_text() -> None:
    share = Column(name="share", kind="percent", digits=1)
    assert share.text(Estimate(value=0.123, error=0.0041)) == "12.3\u202f% ±0.4"
    assert share.text(None) == "-"
    assert Column(name="n").text(Estimate(value=1234, bound=True)) == "≤\u202f1,234"
    assert Column(name="n", kind="brief").text(63_712_480) == "63.7\u202fM"

"""Figures by use lie within their stated errors as often as they should, on real text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stats.truth import blocks_of, json_of, layout_of

from engram_cli.commands.demo.command import library_folder, standard_library
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.sampling.occurrences import Occurrences
from engram_cli.stats.sampling.text_ngrams import Budget, exact_ngrams

WORDS = 4000
USE = ("shared_occurrences", "shared_occurrences_error")


@pytest.fixture(scope="module")
def library() -> list[np.ndarray]:
    """Files of Python's standard library as ids of words and signs, about 300,000 of them."""
    found, known, total = [], dict[str, int](), 0
    for path in standard_library(library_folder()):
        ids = words_of(path, known)
        found.append(ids)
        total += len(ids)
        if total > 300_000:
            return found
    return found


def words_of(path: Path, known: dict[str, int]) -> np.ndarray:
    """The words and signs of a file, numbered as they are met; rare ones share numbers."""
    import re

    text = path.read_text(encoding="utf-8", errors="replace")
    words = re.findall(r"\w+|[^\w\s]|\n", text)
    ids = [1 + known.setdefault(word, len(known)) % (WORDS - 1) for word in words]
    return np.array(ids or [1], dtype=np.int32)


def layout_with(rows: int, salt: int, layers: tuple[int, ...] = (1,)) -> HashLayout:
    moduli = tuple(rows + 2 * (k + 8 * salt) for k in range(8))
    return layout_of(moduli=moduli, heads=4, size=WORDS, layers=layers)


def both(documents: list[np.ndarray], layout: HashLayout) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures by samples, and by all n-grams."""
    drawn, every = Occurrences(layout, 5000), exact_ngrams(layout, Budget(None))
    counts = count_blocks(
        blocks_of(documents, 2**17), layout, sample_size=4000, collectors=[drawn, *every]
    )
    estimated = json_of(counts, occurrences=drawn.partial())
    return estimated, json_of(counts, samples=[table.partial().sample for table in every])


def errors_of(estimate: float, error: float, true: float) -> float:
    """How many standard errors lie between the two."""
    assert 0.0 < error < 0.05
    return abs(estimate - true) / error


@pytest.mark.parametrize("rows", [2003, 20_011, 200_003])
def test_shares_of_occurrences_are_as_near_as_they_say(
    library: list[np.ndarray], rows: int
) -> None:
    """In tables that nearly all share, half and few: within two standard errors 95 times of 100.

    All heads go by one sample, so their misses are alike: each corpus is a quarter of the files.
    """
    misses: list[float] = []
    for quarter in range(4):
        estimated, true = both(library[quarter::4], layout_with(rows, quarter))
        pairs: Any = zip(estimated["columns"], true["columns"], strict=True)
        misses += [
            errors_of(*(a[key] for key in USE), b[USE[0]])
            for a, b in pairs
            if a["order"] == 2 or rows > 2003  # all 3-grams share their rows there
        ]
    misses = sorted(misses)
    assert misses[int(0.85 * len(misses))] < 2.0
    assert misses[-1] < 4.0
    if rows > 2003:  # there frequent n-grams are alone on no row, which the hits do not tell
        assert np.sqrt(np.mean(np.square(misses))) > 0.5  # nor are the errors far too large


def test_clean_heads_by_use_are_as_near_as_they_say(library: list[np.ndarray]) -> None:
    estimated, true = both(library[::4], layout_with(20_011, 0, layers=(1, 5)))
    misses = []
    for a, b in zip(estimated["clean_heads"], true["clean_heads"], strict=True):
        assert abs(sum(a["occurrences"]) - 1.0) < 1e-9
        assert b["occurrences_error"] == [0.0] * 5
        shares = zip(a["occurrences"], a["occurrences_error"], b["occurrences"], strict=True)
        misses += [errors_of(*share) for share in shares]
    assert np.mean(np.array(misses) < 2.0) > 0.85
    assert max(misses) < 4.0


def test_the_ten_most_frequent_are_those_of_exact_counting(library: list[np.ndarray]) -> None:
    estimated, true = both(library, layout_with(20_011, 0))
    for a, b in zip(estimated["top_ngrams"], true["top_ngrams"], strict=True):
        assert b["exact"]
        assert not a["exact"]
        assert [e["tokens"] for e in a["ngrams"][:10]] == [e["tokens"] for e in b["ngrams"][:10]]
        for one, two in zip(a["ngrams"][:10], b["ngrams"][:10], strict=True):
            assert two["count"] <= one["count"] <= two["count"] + 3 * a["excess"]


def test_rows_that_frequent_ngrams_share_are_those_of_exact_counting(
    library: list[np.ndarray],
) -> None:
    estimated, true = both(library, layout_with(20_011, 0))
    first = {
        name: {
            (row["order"], row["head"], row["row"]): row["ngrams"][1]["text"]
            for row in found["worst_rows"]
        }
        for name, found in (("estimated", estimated), ("true", true))
    }
    alike = first["estimated"].items() & first["true"].items()
    assert len(alike) >= 0.7 * len(first["true"])

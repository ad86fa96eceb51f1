"""Sources: their n-grams and what they share, by sets of tuples; which file belongs to which."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
from stats.truth import blocks_of, layout_of, ngrams_of, section, zipf_documents

from engram_cli.corpus.base import TokenBlock
from engram_cli.errors import InputError
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.statistics import sources as module
from engram_cli.stats.statistics.sources import Sources, group_files

LAYOUT = layout_of(moduli=(101, 103, 107, 109), heads=2)
FILES = {
    "a/1.txt": zipf_documents(seed=1, count=5, length=60, size=50),
    "b/2.txt": [d // 2 for d in zipf_documents(seed=2, count=5, length=60, size=50)],
    "a/3.txt": zipf_documents(seed=3, count=5, length=60, size=50),
}
SOURCE_OF = {"a/1.txt": "a", "b/2.txt": "b", "a/3.txt": "a"}


def blocks(size: int) -> Generator[TokenBlock, None, None]:
    """All files as one stream, each block knowing whose tokens it holds."""
    documents = [document for own in FILES.values() for document in own]
    begins = np.cumsum([0, *(sum(map(len, own)) for own in FILES.values())])
    at = 0
    for block in blocks_of(documents, size):
        end = at + len(block.ids)
        files = tuple(
            (max(int(begin) - at, 0), name)
            for begin, stop, name in zip(begins, begins[1:], FILES, strict=False)
            if begin < end and stop > at
        )
        yield replace(block, files=files)
        at = end


@pytest.mark.parametrize(("block", "threads"), [(31, 1), (10_000, 2)])
def test_overlaps_are_those_of_sets(block: int, threads: int) -> None:
    collector = Sources(LAYOUT, SOURCE_OF)
    counts = count_blocks(blocks(block), LAYOUT, collectors=(collector,), threads=threads)
    found = section(collector, counts)
    assert found["names"] == ["a", "b"]
    own = {"a": FILES["a/1.txt"] + FILES["a/3.txt"], "b": FILES["b/2.txt"]}
    assert found["tokens"] == [sum(map(len, own[name])) for name in ("a", "b")]
    for entry in found["overlap"]:
        a, b = (ngrams_of(own[name], LAYOUT, entry["order"]) for name in ("a", "b"))
        both = a.keys() & b.keys()
        assert 0 < len(both) < len(b)
        assert entry["distinct"] == [len(a), len(b)]
        assert np.allclose(entry["ngrams"], [[1, len(both) / len(a)], [len(both) / len(b), 1]])
        uses = [sum(each[n] for n in both) / sum(each.values()) for each in (a, b)]
        assert np.allclose(entry["share"], [[1, uses[0]], [uses[1], 1]])


def test_samples_tell_about_the_same() -> None:
    whole, sampled = Sources(LAYOUT, SOURCE_OF), Sources(LAYOUT, SOURCE_OF, 100)
    counts = count_blocks(blocks(500), LAYOUT, collectors=(whole, sampled))
    pairs = zip(*(section(each, counts)["overlap"] for each in (whole, sampled)), strict=True)
    for one, two in pairs:
        assert np.allclose(one["ngrams"], two["ngrams"], atol=0.2)
        assert not np.allclose(one["ngrams"], two["ngrams"], atol=1e-9)
    assert sampled.memory < whole.memory


def test_files_are_grouped() -> None:
    sizes: dict[str, int | None] = {"/x/a/1": 5, "/x/a/c/2": 1, "/x/b/3": 2, "/x/4": None}
    assert group_files(sizes, "folder") == {
        "/x/a/1": "a",
        "/x/a/c/2": "a",
        "/x/b/3": "b",
        "/x/4": ".",
    }
    assert list(group_files(sizes, "file").values()) == ["a/1", "a/c/2", "b/3", "4"]
    assert group_files({"only.txt": 3}, "folder") == {"only.txt": "."}
    with pytest.raises(InputError, match="cannot group by 'language'"):
        group_files(sizes, "language")


def test_small_sources_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SOURCES", 3)
    sizes: dict[str, int | None] = {"a/f": 3, "b/f": 9, "c/f": 1, "d/f": 7}
    assert list(group_files(sizes, "folder").values()) == ["(others)", "b", "(others)", "d"]

"""Merging: any split, in any order and grouping, gives the bytes of counting in one go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import count, layout_of, zipf_documents

from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.stats.results import count_results
from engram_cli.stats.stats_io import write_stats
from engram_cli.stats.totals import Counts

LAYOUT = layout_of(moduli=(101, 103, 10007, 10009), heads=2, layers=(1, 7))
DOCUMENTS = zipf_documents(seed=4, count=12, length=40, size=50)


def written(counts: Counts, path: Path, files: int = 1) -> Path:
    results = count_results(counts)
    write_stats(counts, lambda: results, path, corpus={"files": files, "empty_files": 0})
    return path


def bytes_of(path: Path) -> dict[str, bytes]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def same(one: Counts, two: Counts) -> bool:
    return (
        (one.tokens, one.documents) == (two.tokens, two.documents)
        and all(np.array_equal(one.hits[layer], two.hits[layer]) for layer in one.hits)
        and all(
            a.threshold == b.threshold
            and np.array_equal(a.hashes, b.hashes)
            and np.array_equal(a.counts, b.counts)
            and np.array_equal(a.tokens, b.tokens)
            for a, b in zip(one.samples, two.samples, strict=True)
        )
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=12, max_size=12).filter(lambda p: len(set(p)) == 3),
    st.sampled_from([16, 60, 5000]),
)
def test_merging_is_associative_and_commutative(parts: list[int], size: int) -> None:
    a, b, c = (
        count(
            [d for d, part in zip(DOCUMENTS, parts, strict=True) if part == which],
            LAYOUT,
            sample_size=size,
        )
        for which in range(3)
    )
    whole = count(DOCUMENTS, LAYOUT, sample_size=size)
    assert same(a.merge(b).merge(c), whole)
    assert same(a.merge(b.merge(c)), whole)
    assert same(c.merge(a).merge(b), whole)
    assert not same(a.merge(b), whole)


@pytest.mark.parametrize("size", [50, 5000])
def test_the_folder_is_that_of_the_whole(size: int, tmp_path: Path) -> None:
    whole = written(count(DOCUMENTS, LAYOUT, sample_size=size), tmp_path / "whole", files=3)
    parts = [
        written(count(DOCUMENTS[i::3], LAYOUT, sample_size=size), tmp_path / f"part{i}")
        for i in range(3)
    ]
    for name, order in (("forth", parts), ("back", parts[::-1])):
        out = tmp_path / name
        merge_stats(MergeStatsRequest(parts=tuple(order), out=out))
        assert bytes_of(out) == bytes_of(whole)
    two = tmp_path / "two"
    merge_stats(MergeStatsRequest(parts=tuple(parts[:2]), out=two))
    merge_stats(MergeStatsRequest(parts=(two, parts[2]), out=tmp_path / "tree"))
    assert bytes_of(tmp_path / "tree") == bytes_of(whole)


def test_sections_that_do_not_merge_are_named(tmp_path: Path) -> None:
    counts = count(DOCUMENTS, LAYOUT)
    one = written(counts, tmp_path / "one")
    write_stats(counts, lambda: count_results(counts) | {"growth": []}, tmp_path / "two")
    result = merge_stats(
        MergeStatsRequest(parts=(one, tmp_path / "two"), workspace=Workspace(tmp_path))
    )
    assert result.left_out == ("growth",)
    assert result.out == tmp_path / "engram-stats"
    assert (result.files, result.tokens) == (1, 2 * counts.tokens)


def test_what_does_not_merge_is_refused(tmp_path: Path) -> None:
    one = written(count(DOCUMENTS, LAYOUT), tmp_path / "one")
    other = layout_of(moduli=(101, 103, 10007, 10037), heads=2, layers=(1, 7))
    two = written(count(DOCUMENTS, other), tmp_path / "two")
    written(count(DOCUMENTS, LAYOUT), tmp_path / "four")
    three = written(count(DOCUMENTS, LAYOUT, sample_size=20), tmp_path / "three")
    out = tmp_path / "out"
    with pytest.raises(MismatchError, match=r"two was counted with another layout than .*one"):
        merge_stats(MergeStatsRequest(parts=(one, two), out=out))
    with pytest.raises(MismatchError, match="samples of 262144 2-grams and of 20"):
        merge_stats(MergeStatsRequest(parts=(one, three), out=out))
    with pytest.raises(InputError, match="one is given twice"):
        merge_stats(MergeStatsRequest(parts=(one, one), out=out))
    with pytest.raises(InputError, match="cannot merge 1 statistics folder"):
        merge_stats(MergeStatsRequest(parts=(one,), out=out))
    with pytest.raises(InputError, match="no statistics folder"):
        merge_stats(MergeStatsRequest(parts=(one, tmp_path / "none"), out=out))
    with pytest.raises(MismatchError, match="another layout"):  # not hidden by what is in the way
        merge_stats(MergeStatsRequest(parts=(one, two), out=one))
    for force in (False, True):
        with pytest.raises(OutputError, match="one is what this command reads"):
            merge_stats(MergeStatsRequest(parts=(one, three), out=one, force=force))
    with pytest.raises(OutputError, match="three already exists"):
        merge_stats(MergeStatsRequest(parts=(one, one.parent / "four"), out=three))
    assert not out.exists()

"""What is held out is not counted, and what is counted is what a corpus without it would give."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import layout_of, zipf_documents

from engram_cli.corpus.base import TokenBlock, cut_names
from engram_cli.errors import InputError, TokenIdError
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.counting.holdout import Holdout
from engram_cli.stats.counting.token_chunk import SEGMENT_TOKENS, SegmentSplitter, scrambled
from engram_cli.stats.totals import Counts

LAYOUT = layout_of(moduli=(1009, 1013, 10007, 10009), heads=2)
FILES = [zipf_documents(seed=seed, count=70, length=30, size=50) for seed in range(4)]
DOCUMENTS = [document for file in FILES for document in file]


def starts_of(documents: list[np.ndarray]) -> np.ndarray:
    starts = np.zeros(sum(map(len, documents)), dtype=bool)
    starts[np.cumsum([0, *map(len, documents[:-1])])] = True
    return starts


def blocks_of(
    documents: list[np.ndarray], files: list[tuple[int, str]], size: int
) -> Generator[TokenBlock, None, None]:
    """The documents in blocks of `size` tokens."""
    ids, starts = np.concatenate(documents), starts_of(documents)
    for begin in range(0, len(ids), size):
        end = min(begin + size, len(ids))
        yield TokenBlock(
            ids=ids[begin:end],
            starts=starts[begin:end],
            size=0,
            locate=lambda index, begin=begin: f"token {begin + index}",
            files=cut_names(files, begin, end),
        )


def files_of(order: list[int]) -> tuple[list[np.ndarray], list[tuple[int, str]]]:
    at, files, documents = 0, [], []
    for which in order:
        files.append((at, str(which)))
        documents += FILES[which]
        at += sum(map(len, FILES[which]))
    return documents, files


def run(
    order: list[int], size: int = 500, *, kept: int = 10**6, joined: bool = False
) -> tuple[Counts, Holdout]:
    holdout = Holdout(0.2, kept)
    documents, files = files_of(order)
    counts = count_blocks(
        blocks_of(documents, files, size), LAYOUT, holdout=holdout, join_documents=joined
    )
    return counts, holdout


def test_the_rest_is_counted_as_if_it_were_the_corpus() -> None:
    counts, holdout = run([0, 1, 2, 3])
    ids, starts = holdout.held.sample()
    held = np.split(ids, np.flatnonzero(starts)[1:])
    assert 0.1 < holdout.held.tokens / sum(map(len, DOCUMENTS)) < 0.3
    assert len(ids) == holdout.held.tokens
    assert counts.tokens + holdout.held.tokens == sum(map(len, DOCUMENTS))
    # Whole documents were taken out: those left give the same counts.
    taken = [document.tolist() for document in held]
    rest = []
    for document in DOCUMENTS:
        if document.tolist() in taken:
            taken.remove(document.tolist())
        else:
            rest.append(document)
    assert not taken
    expected = count_blocks(blocks_of(rest, [(0, "")], 999), LAYOUT)
    assert counts.documents == expected.documents
    assert np.array_equal(counts.hits[1], expected.hits[1])


@given(order=st.permutations(range(4)), size=st.integers(10, 2000))
@settings(max_examples=8, deadline=None)
def test_order_and_blocks_change_nothing(order: list[int], size: int) -> None:
    for kept in (10**6, 100):
        counts, holdout = run(order, size, kept=kept)
        expected, other = run([0, 1, 2, 3], kept=kept)
        assert np.array_equal(counts.hits[1], expected.hits[1])
        assert counts.documents == expected.documents
        for one, two in zip(holdout.held.sample(), other.held.sample(), strict=True):
            assert np.array_equal(one, two)
        assert holdout.held.tokens == other.held.tokens
        if kept == 100:
            assert 100 <= len(holdout.held.sample()[0]) < 200


@pytest.mark.parametrize("size", [7, 100, 10_000])
def test_look_back_ends_where_something_was_taken_out(size: int) -> None:
    counts, _ = run([0, 1, 2, 3], size, joined=True)
    documents, files = files_of([0, 1, 2, 3])
    holdout = Holdout(0.2)
    starts = starts_of(documents)
    keys = SegmentSplitter().push(starts, files)
    lengths = np.diff(keys.begins, append=len(starts))
    whole = TokenBlock(
        ids=np.concatenate(documents), starts=starts, size=0, locate=str, files=tuple(files)
    )
    kept = holdout.push(whole, keys)
    assert kept.cuts.any()
    assert int(lengths.sum()) == len(kept.block.ids) + holdout.held.tokens
    # Each run of what is left is a sequence of its own.
    parts = np.split(kept.block.ids, np.flatnonzero(kept.cuts))
    expected = count_blocks(blocks_of([p for p in parts if len(p)], [(0, "")], 10**6), LAYOUT)
    assert np.array_equal(counts.hits[1], expected.hits[1])


def test_a_bad_id_is_found_where_it_is_and_even_if_held_out() -> None:
    documents, files = files_of([0, 1, 2, 3])
    lengths = np.cumsum([0, *map(len, documents)])
    for bad in range(0, 40):
        broken = [document.copy() for document in documents]
        broken[bad][-1] = 50
        with pytest.raises(TokenIdError, match=f"^token {lengths[bad + 1] - 1} "):
            count_blocks(blocks_of(broken, files, 300), LAYOUT, holdout=Holdout(0.2))


@pytest.mark.parametrize("block", [5000, 20_000, 10**6])
def test_a_document_whose_beginning_is_held_out_is_counted(block: int) -> None:
    ids = np.random.default_rng(0).integers(0, 50, 60 * SEGMENT_TOKENS).astype(np.int32)
    for name in "abcdefghijklmnop":
        files = [(0, name)]
        holdout = Holdout(0.3)
        counts = count_blocks(blocks_of([ids], files, block), LAYOUT, holdout=holdout)
        assert counts.documents == 1
        key = SegmentSplitter().push(np.arange(len(ids)) == 0, files).keys[:1]
        if scrambled(key ^ np.uint64(0x6A09E667F3BCC909))[0] < 0.3 * 2.0**64:
            break
    else:
        pytest.fail("no file of these has its beginning held out")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_cannot_be(share: float) -> None:
    with pytest.raises(InputError, match="--holdout"):
        Holdout(share)

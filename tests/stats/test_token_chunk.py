"""Segments keep their keys wherever blocks are cut and in whatever order files are read."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import layout_of

from engram_cli.corpus.base import TokenBlock, cut_names
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.counting.token_chunk import (
    SEGMENT_TOKENS,
    SegmentSplitter,
    TokenChunk,
    places_of,
)

FILES = {"a": [3, 50, 1], "b": [17], "c": [29, 2, 2]}


def stream(names: str) -> tuple[np.ndarray, tuple[tuple[int, str], ...]]:
    """Document starts, and where files begin."""
    lengths = [length for name in names for length in FILES[name]]
    starts = np.zeros(sum(lengths), dtype=bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    at, files = 0, []
    for name in names:
        files.append((at, name))
        at += sum(FILES[name])
    return starts, tuple(files)


def keys_of(names: str, block: int, segment: int = 7) -> np.ndarray:
    """The key of every token."""
    starts, files = stream(names)
    stretcher = SegmentSplitter(segment)
    keys = []
    for begin in range(0, len(starts), block):
        end = min(begin + block, len(starts))
        part = stretcher.push(starts[begin:end], cut_names(files, begin, end))
        keys.append(np.repeat(part.keys, np.diff(part.begins, append=end - begin)))
    return np.concatenate(keys)


@given(block=st.integers(1, 120))
@settings(max_examples=30, deadline=None)
def test_blocks_change_nothing(block: int) -> None:
    whole = keys_of("abc", 1000)
    assert np.array_equal(keys_of("abc", block), whole)
    pieces = sum(-(-length // 7) for lengths in FILES.values() for length in lengths)
    assert len(np.unique(whole)) == pieces


def test_files_keep_their_keys_in_another_order() -> None:
    a, b, c = (keys_of(name, 10) for name in "abc")
    assert np.array_equal(keys_of("cab", 11), np.concatenate([c, a, b]))


def test_parts_of_stretches() -> None:
    starts, files = stream("abc")
    whole = SegmentSplitter(7).push(starts, files)
    by_token = np.repeat(whole.keys, np.diff(whole.begins, append=len(starts)))
    for begin in range(0, 100, 9):
        for end in (begin + 1, min(begin + 13, len(starts)), len(starts)):
            part = whole.part(begin, end)
            found = np.repeat(part.keys, np.diff(part.begins, append=end - begin))
            assert np.array_equal(found, by_token[begin:end])


@given(mask=st.lists(st.booleans(), max_size=70), begin=st.integers(0, 9))
def test_places_of_a_mask(mask: list[bool], begin: int) -> None:
    part = np.array(mask, dtype=bool)[begin:]
    assert np.array_equal(places_of(part), np.flatnonzero(part))


class Reader(Collector):
    """Remembers what it was shown."""

    name = "reader"

    def __init__(self) -> None:
        self.chunks: list[TokenChunk] = []
        self.rows: list[np.ndarray] = []

    def push(self, chunk: TokenChunk) -> None:
        self.chunks.append(chunk)

    def row_observer(self, layer: int, order: int) -> Reader | None:
        return self if (layer, order) == (1, 3) else None

    def push_rows(self, rows: np.ndarray, chunk: TokenChunk) -> None:
        assert len(rows) == len(chunk)
        self.rows.append(rows.copy())


def test_collectors_see_every_token_once_in_order() -> None:
    layout = layout_of(moduli=(101, 103, 107, 109), heads=2)
    ids = np.random.default_rng(1).integers(0, 50, 300_000).astype(np.int32)

    def blocks() -> Generator[TokenBlock, None, None]:
        for begin in range(0, len(ids), 170_000):
            part = ids[begin : begin + 170_000]
            starts = np.arange(begin, begin + len(part)) % 100_000 == 0
            yield TokenBlock(ids=part, starts=starts, size=1, locate=str, files=((0, "f"),))

    for threads in (1, 2, 5):
        readers = [Reader(), Reader()]
        counts = count_blocks(blocks(), layout, threads=threads, collectors=readers)
        for reader in readers:
            seen = reader.chunks
            assert np.array_equal(np.concatenate([p.ids for p in seen]), ids)
            assert [p.position for p in seen] == list(np.cumsum([0, *map(len, seen[:-1])]))
            assert {name for p in seen for _, name in p.files} == {"f"}
            keys = {int(key) for p in seen for key in p.segments.keys}
            assert len(keys) == 3 * -(-100_000 // SEGMENT_TOKENS)
            # The rows are those of the first head of order 3.
            hits = np.bincount(np.concatenate(reader.rows), minlength=107)
            assert np.array_equal(hits, counts.hits[1][204 : 204 + 107])

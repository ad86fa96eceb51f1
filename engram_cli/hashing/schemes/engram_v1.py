"""engram-v1, the scheme of the paper's demo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import numpy as np

from engram_cli.errors import LayoutError
from engram_cli.hashing.layout import HashLayout, LayerHash, check_shape
from engram_cli.hashing.schemes.base import Scheme, next_prime
from engram_cli.vocab.lookup import VocabMap

LAYER_STEP = 10007
INT64_MAX = 2**63 - 1
DEMO_ROWS = 129280 * 5
DEMO_PAD = 2  # of DeepSeek's tokenizer


def layout(
    vocab: VocabMap,
    *,
    orders: Sequence[int] = (2, 3),
    heads: int = 8,
    rows_per_head: int | Sequence[int] = DEMO_ROWS,
    layers: Sequence[int] = (1, 15),
    pad_id: int | None = None,
    seed: int = 0,
    scheme: str = "engram-v1",
) -> HashLayout:
    """Return the layout of `vocab`; the moduli are different primes from `rows_per_head` up.

    `rows_per_head`: one base size, or one an order. `pad_id` is a raw token id; its compressed id
    stands for every blocked position. None is the vocabulary's own pad token, or the demo's where
    that is not known. Raises LayoutError.
    """
    if pad_id is None:
        pad_id = DEMO_PAD if vocab.pad_id is None else vocab.pad_id
    orders, layers = as_tuple(orders), as_tuple(layers)
    check_shape(orders, heads, layers)
    sizes = base_sizes(rows_per_head, orders)
    if not 0 <= pad_id < vocab.vocab_size or vocab.lookup[pad_id] < 0:
        raise LayoutError(
            f"pad id {pad_id} is no token of this vocabulary",
            "give --pad-id an id of the tokenizer",
        )
    columns = distinct_primes(sizes, heads, len(layers))
    return HashLayout(
        scheme=scheme,
        orders=orders,
        heads=heads,
        fold="newest-first",
        filler_id=int(vocab.lookup[pad_id]),
        eos_id=None,
        compressed_size=vocab.size,
        vocab_digest=vocab.digest,
        layers=tuple(
            LayerHash(
                layer=layer,
                multipliers=multipliers(vocab.size, orders[-1], layer, seed),
                moduli=moduli,
                salts=(0,) * len(moduli),
                rows=sum(moduli),
            )
            for layer, moduli in zip(layers, columns, strict=False)
        ),
        parameters={"rows_per_head": list(sizes), "pad_id": pad_id, "seed": seed},
        lookup=vocab.lookup,
    )


def multipliers(compressed_size: int, count: int, layer: int, seed: int) -> tuple[int, ...]:
    """Return the odd multipliers of a layer, drawn so that token x multiplier stays below 2**63."""
    if seed < 0 or layer < 0:
        raise LayoutError(f"seed {seed}, layer {layer}: below 0", "seeds and layers count from 0")
    generator = np.random.default_rng(seed + LAYER_STEP * layer)
    bound = max(1, INT64_MAX // compressed_size // 2)
    drawn = generator.integers(0, bound, size=count, dtype=np.int64)
    return tuple(2 * int(value) + 1 for value in drawn)


def as_tuple(values: int | Sequence[int]) -> tuple[int, ...]:
    """Return one integer, or several."""
    return tuple(values) if isinstance(values, Sequence) else (values,)


def base_sizes(rows_per_head: int | Sequence[int], orders: Sequence[int]) -> tuple[int, ...]:
    """Return one base size an order. Raises LayoutError when their number is another."""
    sizes = as_tuple(rows_per_head)
    if not all(isinstance(size, Integral) for size in sizes):
        raise LayoutError(f"{rows_per_head!r} rows per head", "give an integer, or one an order")
    sizes = tuple(map(int, sizes))
    if len(sizes) == 1:
        return sizes * len(orders)
    if len(sizes) != len(orders):
        raise LayoutError(
            f"{len(sizes)} sizes of rows per head for {len(orders)} orders",
            "give one size, or one for each order",
        )
    return sizes


def distinct_primes(sizes: Sequence[int], heads: int, layers: int) -> Iterator[tuple[int, ...]]:
    """For each layer the primes of its columns, no prime twice in all the layers."""
    for size in sizes:
        if not 1 <= size <= 2**32:
            raise LayoutError(f"{size} rows per head", "give between 1 and 2^32 rows per head")
    taken: set[int] = set()
    for _ in range(layers):
        columns: list[int] = []
        for size in sizes:
            prime = size - 1
            for _ in range(heads):
                prime = next_prime(prime)
                while prime in taken:
                    prime = next_prime(prime)
                taken.add(prime)
                columns.append(prime)
        yield tuple(columns)


SCHEME = Scheme(layout=layout, raw_ids=False)

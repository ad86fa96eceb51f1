"""engram-peft, the hash of the package of that name (1.2.7): engram-v1's constants, another window.

An order n mixes the n oldest of the last N tokens, the oldest with the first multiplier. In a table
of bigrams and trigrams the bigram thus ends one token before the current one. Primes are taken in
ascending order of the layers. The package divides its "vocabulary size per n-gram" by the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import engram_v1
from engram_cli.hashing.schemes.base import Scheme
from engram_cli.vocab.lookup import VocabMap

DEFAULT_ROWS = 1131200 // 8


def layout(
    vocab: VocabMap,
    *,
    orders: Sequence[int] = (2, 3),
    heads: int = 8,
    rows_per_head: int | Sequence[int] = DEFAULT_ROWS,
    layers: Sequence[int] = (1, 14),
    pad_id: int | None = None,
    seed: int = 0,
) -> HashLayout:
    """Return the layout of `vocab`, by default that of the package's default config.

    The package compresses the tokens of the base vocabulary alone, so `vocab` is the map of these.
    The others as in `engram_v1.layout`. Raises LayoutError.
    """
    made = engram_v1.layout(
        vocab,
        orders=orders,
        heads=heads,
        rows_per_head=rows_per_head,
        layers=sorted(engram_v1.as_tuple(layers)),
        pad_id=pad_id,
        seed=seed,
        scheme="engram-peft",
    )
    return replace(made, fold="oldest-first-late")


SCHEME = Scheme(layout=layout, raw_ids=False)

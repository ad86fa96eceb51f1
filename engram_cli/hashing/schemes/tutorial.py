"""tutorial, the scheme of the introductory article: small numbers, one table size.

Compression is `id mod (vocab // 2)`; multipliers 1, 3, 5, ... go to the tokens oldest first; each
head XORs its own salt before the modulus. Positions before the start read the compressed id 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engram_cli.errors import LayoutError
from engram_cli.hashing.layout import HashLayout, LayerHash, check_shape
from engram_cli.hashing.schemes.base import Scheme
from engram_cli.hashing.schemes.engram_v1 import as_tuple
from engram_cli.vocab.lookup import lookup_digest

HEAD_SALT = 10007


def layout(
    *,
    vocab_size: int,
    orders: Sequence[int] = (2, 3),
    heads: int = 4,
    rows_per_head: int = 5003,
    layers: Sequence[int] = (0,),
) -> HashLayout:
    """Return the layout for `vocab_size` raw ids, the same rows for every head. Raises
    LayoutError."""
    if vocab_size < 2:
        raise LayoutError(f"vocab_size {vocab_size}", "the tutorial scheme needs 2 ids or more")
    orders, layers = as_tuple(orders), as_tuple(layers)
    check_shape(orders, heads, layers)
    size = vocab_size // 2
    lookup = (np.arange(vocab_size) % size).astype(np.int32)
    columns = len(orders) * heads
    return HashLayout(
        scheme="tutorial",
        orders=orders,
        heads=heads,
        fold="oldest-first",
        filler_id=0,
        eos_id=None,
        compressed_size=size,
        vocab_digest=lookup_digest(lookup),
        layers=tuple(
            LayerHash(
                layer=layer,
                multipliers=tuple(2 * i + 1 for i in range(orders[-1])),
                moduli=(rows_per_head,) * columns,
                salts=tuple(HEAD_SALT * head for _ in orders for head in range(heads)),
                rows=rows_per_head * columns,
            )
            for layer in layers
        ),
        parameters={"rows_per_head": rows_per_head, "vocab_size": vocab_size},
        lookup=lookup,
    )


SCHEME = Scheme(layout=layout, raw_ids=True)

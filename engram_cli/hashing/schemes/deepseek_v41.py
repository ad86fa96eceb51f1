"""deepseek-v4.1, the scheme of DeepSeek-V4.1-Flash: engram-v1 with N = 4.

Its dead tokens (image spans) are a mask given with the ids; see `hashing.lookback`.
"""

from __future__ import annotations

from collections.abc import Sequence

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import engram_v1
from engram_cli.hashing.schemes.base import Scheme
from engram_cli.vocab.lookup import VocabMap


def layout(
    vocab: VocabMap,
    *,
    orders: Sequence[int] = (2, 3, 4),
    heads: int = 8,
    rows_per_head: int | Sequence[int] = 16_000_000,
    layers: Sequence[int] = (1, 14),
    pad_id: int = 2,
    seed: int = 0,
) -> HashLayout:
    """Return the layout of `vocab`, by default with the released model's geometry. Raises
    LayoutError."""
    return engram_v1.layout(
        vocab,
        orders=orders,
        heads=heads,
        rows_per_head=rows_per_head,
        layers=layers,
        pad_id=pad_id,
        seed=seed,
        scheme="deepseek-v4.1",
    )


SCHEME = Scheme(layout=layout, raw_ids=False)

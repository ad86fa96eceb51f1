"""Computes how many tokens of its n-gram each position may see, by one rule for all schemes.

`visible[p]` counts the current token too. It is N if nothing limits the position. It is 1 at the
first token of a sequence, after an EOS and after a dead token. At a dead token it is 0, and no
later position sees that token or an older one. Lag k of an n-gram is the filler if `visible <= k`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout

Mask = NDArray[np.bool_]


def visible(
    layout: HashLayout,
    compressed: NDArray[np.int32],
    *,
    dead: Mask | None = None,
    starts: Mask | None = None,
    carry: int = 0,
) -> NDArray[np.uint8]:
    """Return uint8[T] in 0..N for compressed ids int32[T].

    `dead` and `starts` are bool[T] masks of dead tokens and of first tokens of sequences; `carry`
    is how many tokens before the first one may still be seen (`carry_after` of what went before).
    """
    return limits(compressed, dead, starts, layout.eos_id, layout.max_order, carry)


def limits(
    compressed: NDArray[np.int32],
    dead: Mask | None,
    starts: Mask | None,
    eos: int | None,
    order: int,
    carry: int,
) -> NDArray[np.uint8]:
    """Return `visible`; `eos`: the compressed id that ends a sequence; `order`: the longest."""
    count = len(compressed)
    position = np.arange(count, dtype=np.int64)
    begin = np.full(count, -carry, dtype=np.int64)
    if starts is not None:
        begin = np.where(starts, position, begin)
    if eos is not None and count:
        after = np.flatnonzero(compressed[:-1] == eos) + 1
        begin[after] = after
    if dead is not None:
        begin = np.where(dead, position + 1, begin)
    reach = position - np.maximum.accumulate(begin) + 1
    limited: NDArray[np.uint8] = np.minimum(reach, order).astype(np.uint8)
    return limited


def carry_after(
    layout: HashLayout, compressed: NDArray[np.int32], seen: NDArray[np.uint8], carry: int
) -> int:
    """Return how many of the last tokens the next position may see; `seen` is `visible` of
    these."""
    if not len(compressed):
        return carry
    if layout.eos_id is not None and int(compressed[-1]) == layout.eos_id:
        return 0
    return min(int(seen[-1]), layout.max_order - 1)

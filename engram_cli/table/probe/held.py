"""The held-out text: positions to ask about, the rows and contexts they have, what truly follows.

In: a token file of the text. Out: Questions, a sample of its positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import CorpusError
from engram_cli.hashing.hasher import StreamHasher, plan_layer
from engram_cli.hashing.kernels import mix_ngrams
from engram_cli.hashing.layout import HashLayout
from engram_cli.table.inits.corpus.tokens import TokenFile, split_starts

MOST_TOKENS = 2**26  # of the text: more are not read, a sample is taken anyway


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Questions:
    """Q positions: `rows` int64[Q, C] of one layer, `truth` int64[Q] the token that follows each.

    `contexts` order: int64[Q], the mix of the n-gram that ends there.
    """

    rows: NDArray[np.int64]
    truth: NDArray[np.int64]
    contexts: dict[int, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.truth)

    def part(self, chosen: NDArray[np.integer] | slice) -> Questions:
        """Some of them."""
        contexts = {order: mixes[chosen] for order, mixes in self.contexts.items()}
        return Questions(rows=self.rows[chosen], truth=self.truth[chosen], contexts=contexts)


def ask(layout: HashLayout, layer: int, file: TokenFile, count: int, joined: bool) -> Questions:
    """At most `count` positions of the text, spread evenly. Raises CorpusError when it has none."""
    ids, starts = split_starts(np.array(file.map()[:MOST_TOKENS]))
    if joined:
        starts[:] = False
    follows = np.flatnonzero(np.append(~starts[1:], False))
    if not len(follows):
        raise CorpusError(f"no token of {file.path} follows another", "give a longer text")
    chosen = follows[np.linspace(0, len(follows) - 1, min(count, len(follows))).astype(np.int64)]
    hasher = StreamHasher(layout)
    window = hasher.push(ids, starts=starts)
    columns = hasher.columns(window, layer)[:, chosen]
    entry = layout.layer(layer)
    plan = plan_layer(layout, entry)
    contexts = {}
    for index, order in enumerate(layout.orders):
        mix = np.empty(len(ids), dtype=np.int64)
        multipliers = plan.multipliers[index, :order]
        mix_ngrams(window.tokens, window.seen, plan.filler, multipliers, 0, mix)
        contexts[order] = mix[chosen]
    offsets = np.array(entry.offsets, dtype=np.int64)
    return Questions(
        rows=columns.T.astype(np.int64) + offsets,
        truth=ids[chosen + 1].astype(np.int64),
        contexts=contexts,
    )

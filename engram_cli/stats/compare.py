"""What vocabulary compression is worth: the corpus hashed with raw token ids too.

The twin of a layout has the same geometry and takes token ids as they are. Chunks in, the section
"uncompressed" of stats.json out.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.hashing.hasher import Window
from engram_cli.hashing.layout import INT64, HashLayout
from engram_cli.stats import kernels
from engram_cli.stats.by_use import uses_of
from engram_cli.stats.collector import BaseCollector
from engram_cli.stats.collisions import column_stats
from engram_cli.stats.counters import Counter, buffer_bytes, scratch_bytes
from engram_cli.stats.distinct import LEAST_SAMPLE, MOST_SAMPLE, NgramSample, sampler_bytes
from engram_cli.stats.exact import EXACT, Budget, exact_ngrams
from engram_cli.stats.occurrences import Occurrences, drawn_ngrams
from engram_cli.stats.orders import order_stats
from engram_cli.stats.samples import merged, samples_of, samples_state
from engram_cli.stats.state import (
    State,
    nested,
    numbered,
    part_of,
    take,
    take_into,
    take_scalar,
)
from engram_cli.stats.token_chunk import TokenChunk
from engram_cli.stats.totals import Counts


class Uncompressed(BaseCollector):
    """Counts what the twin of a layout looks up."""

    name = "uncompressed"

    def __init__(self, layout: HashLayout, sample_size: int, exact: Budget | None = None) -> None:
        """`exact`: every n-gram is counted, in so much memory. Raises InputError for a layout that
        takes token ids as they are."""
        self.layout = uncompressed_twin(layout)
        self._size = sample_size
        self._exact = () if exact is None else exact_ngrams(self.layout, exact)
        self._occurrences = Occurrences(self.layout)
        self._counter = Counter(self.layout, sample_size, (*self._exact, self._occurrences))
        self._scratch = self._counter.scratch()
        blank = np.full(layout.max_order - 1, self.layout.filler_id, dtype=np.int32)
        self._history = blank
        self._absorbed: tuple[NgramSample, ...] = ()

    @classmethod
    def blank_for(cls, layout: HashLayout, state: State) -> Uncompressed:
        """One that can absorb a partial. Raises ArtifactError."""
        exact = Budget(None) if part_of(state, EXACT) else None
        return cls(layout, take_scalar(state, "samples/0/size", LEAST_SAMPLE, MOST_SAMPLE), exact)

    @property
    def memory(self) -> int:
        """Counters and samples once more."""
        samples = sum(sampler_bytes(order, self._size) for order in self.layout.orders)
        samples += self._occurrences.memory
        scratch = buffer_bytes(self.layout) + scratch_bytes(self.layout)
        return 4 * sum(entry.rows for entry in self.layout.layers) + samples + scratch

    def push(self, chunk: TokenChunk) -> None:
        """Count the raw ids of a chunk; look-back ends where it ends in the compressed ones."""
        tokens = np.concatenate([self._history, chunk.ids.astype(np.int32)])
        self._history = tokens[len(tokens) - len(self._history) :].copy()
        window = Window(tokens=tokens, seen=chunk.window.seen)
        self._counter.push(replace(chunk, window=window), self._scratch)

    def counts(self, counts: Counts) -> Counts:
        """What the twin counted, in the corpus of `counts`."""
        own = self._counter.counts(
            tokens=counts.tokens, documents=counts.documents, joined=counts.joined
        )
        return replace(own, samples=self._samples())

    def partial(self) -> State:
        """Hits and samples, as those of the layout itself."""
        self._counter.settle()
        hits = {str(layer): hits for layer, hits in self._counter.hits.items()}
        return nested(
            hits=hits,
            samples=samples_state(self._samples()),
            occurrences=self._occurrences.partial(),
            **{EXACT: numbered([table.partial() for table in self._exact])},
        )

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError, MismatchError for another --sample-size."""
        layout = self.layout
        if not part_of(state, "occurrences"):
            raise ArtifactError(
                "its raw ids were counted by an earlier version, which knew less of them",
                "count it again",
            )
        ids = range(layout.compressed_size)
        samples = samples_of(part_of(state, "samples"), layout.orders, ids, 2**63)
        self._absorbed = merged(self._samples(), samples)
        self._occurrences.absorb(part_of(state, "occurrences"))
        every = part_of(state, EXACT)
        if not every:  # what one part lacks the whole lacks
            self._exact = ()
        for index, table in enumerate(self._exact):
            table.absorb(part_of(every, index))
        for layer, hits in self._counter.hits.items():
            kernels.add_hits(hits, take(state, f"hits/{layer}", np.uint32, hits.shape))

    def _samples(self) -> tuple[NgramSample, ...]:
        return self._absorbed or tuple(s.sample() for s in self._counter.samplers)

    def state(self) -> State:
        """Of the counters, and the last tokens."""
        return nested(counter=self._counter.state()) | {"history": self._history}

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        self._counter.restore(part_of(state, "counter"))
        take_into(state, "history", self._history)

    def section(self, counts: Counts) -> dict[str, Any]:
        """The figures of each order and column, as `orders` and `columns` of stats.json."""
        own = self.counts(counts)
        samples = tuple(table.sample() for table in self._exact) or own.samples
        drawn = drawn_ngrams(self._occurrences.sample(), self.layout.orders)
        uses = [uses_of(own, *pair) for pair in zip(samples, drawn, strict=True)]
        return {
            "orders": [asdict(each) for each in order_stats(samples, own.tokens)],
            "columns": [asdict(each) for each in column_stats(own, samples, uses)],
        }


def uncompressed_twin(layout: HashLayout) -> HashLayout:
    """A layout over raw ids with the moduli of `layout`, whose multipliers are halved where the
    larger ids would overflow, and stay odd. Raises InputError when there is nothing to undo."""
    lookup = layout.lookup
    if lookup is None:
        raise InputError(
            f"{layout.scheme} hashes token ids as they are", "leave out --compare-uncompressed"
        )
    layers = []
    for entry in layout.layers:
        multipliers = [abs(value) for value in entry.multipliers]
        while max(multipliers) * (len(lookup) - 1) >= INT64:
            multipliers = [value // 2 | 1 for value in multipliers]
        layers.append(replace(entry, multipliers=tuple(multipliers)))
    return replace(
        layout,
        scheme=f"{layout.scheme}, uncompressed",
        filler_id=int(np.flatnonzero(lookup == layout.filler_id)[0]),
        eos_id=None,  # look-back is taken over from the compressed ids
        compressed_size=len(lookup),
        vocab_digest=None,
        layers=tuple(layers),
        lookup=None,
    )

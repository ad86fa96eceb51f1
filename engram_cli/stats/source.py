"""One source of a corpus: its tokens in; samples of its n-grams and positions, and a bitmap out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.distinct import NgramSample, Sampler, table_entries
from engram_cli.stats.exact import (
    EXACT,
    Budget,
    ExactNgrams,
    both_of,
    every_state,
    exact_ngrams,
    read_every,
)
from engram_cli.stats.membership import BITS, Membership, membership_of
from engram_cli.stats.occurrences import OccurrenceSample, OccurrenceSampler, occurrences_of
from engram_cli.stats.samples import merged, samples_of, samples_state
from engram_cli.stats.state import State, check, nested, numbered, part_of, take_into
from engram_cli.stats.token_chunk import TokenChunk

_EXACT_ENTRIES = 2**12  # of a table of all n-grams at first: there are many tables


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourcePartial:
    """What is known of a source: for each order a sample and a bitmap, and a sample of positions.

    `every`: all n-grams of each order, () where only the samples are known.
    """

    samples: tuple[NgramSample, ...]
    every: tuple[NgramSample, ...]
    seen: tuple[Membership, ...]
    occurrences: OccurrenceSample

    @property
    def best(self) -> tuple[NgramSample, ...]:
        """The n-grams to go by."""
        return self.every or self.samples

    def merge(self, other: SourcePartial) -> SourcePartial:
        """That of both parts. Raises MismatchError."""
        pairs = zip(self.every, other.every, strict=False)  # () where one part has none
        return SourcePartial(
            samples=merged(self.samples, other.samples),
            every=tuple(both_of(one, two) for one, two in pairs),
            seen=tuple(one.merge(two) for one, two in zip(self.seen, other.seen, strict=True)),
            occurrences=self.occurrences.merge(other.occurrences),
        )

    def state(self) -> State:
        """All of it as named arrays."""
        return nested(
            samples=samples_state(self.samples),
            seen=numbered([seen.partial() for seen in self.seen]),
            occurrences=self.occurrences.state(),
            **{EXACT: numbered([every_state(every) for every in self.every])},
        )


def read_source(state: State, layout: HashLayout, tokens: int) -> SourcePartial:
    """The source in a `state`, of `tokens` tokens. Raises ArtifactError."""
    ids, orders = range(layout.compressed_size), layout.orders
    every = part_of(state, EXACT)
    return SourcePartial(
        samples=samples_of(part_of(state, "samples"), orders, ids, tokens),
        every=tuple(
            read_every(part_of(every, index), order, ids)
            for index, order in enumerate(orders if every else ())
        ),
        seen=tuple(membership_of(part_of(state, f"seen/{index}")) for index in range(len(orders))),
        occurrences=occurrences_of(part_of(state, "occurrences"), layout.max_order, ids),
    )


class Source:
    """Looks at the tokens of one source."""

    def __init__(self, layout: HashLayout, size: int, exact: Budget | None) -> None:
        """`size`: n-grams of an order, and positions, that are sampled; `exact`: every n-gram is
        counted, in so much memory."""
        self._samplers = [Sampler(order, layout.filler_id, size) for order in layout.orders]
        self._seen = [Membership() for _ in layout.orders]
        self._occurrences = OccurrenceSampler(layout, size)
        self._exact: tuple[ExactNgrams, ...] = ()
        if exact is not None:
            self._exact = exact_ngrams(layout, exact, _EXACT_ENTRIES)

    def push(self, chunk: TokenChunk) -> None:
        """Look at a chunk."""
        hashes = np.empty(len(chunk), dtype=np.uint64)
        for sampler, seen in zip(self._samplers, self._seen, strict=True):
            sampler.hash(chunk.window, hashes)
            sampler.push_hashes(hashes, chunk.window)
            seen.add(hashes)
        self._occurrences.push(chunk)
        for table in self._exact:
            table.push(chunk)

    def partial(self) -> SourcePartial:
        """What is known; nothing is pushed afterwards."""
        return SourcePartial(
            samples=tuple(sampler.sample() for sampler in self._samplers),
            every=tuple(table.sample() for table in self._exact),
            seen=tuple(self._seen),
            occurrences=self._occurrences.sample(),
        )

    def state(self) -> State:
        """Of samplers, bitmaps and tables."""
        return nested(
            samplers=numbered([sampler.state() for sampler in self._samplers]),
            seen=numbered([{"bits": seen.bits} for seen in self._seen]),
            occurrences=self._occurrences.state(),
            **{EXACT: numbered([table.state() for table in self._exact])},
        )

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        for index, sampler in enumerate(self._samplers):
            sampler.restore(part_of(state, f"samplers/{index}"))
        for index, seen in enumerate(self._seen):
            take_into(part_of(state, f"seen/{index}"), "bits", seen.bits)
        self._occurrences.restore(part_of(state, "occurrences"))
        check(bool(part_of(state, EXACT)) == bool(self._exact), EXACT)
        for index, table in enumerate(self._exact):
            table.restore(part_of(state, f"{EXACT}/{index}"))


def source_memory(layout: HashLayout, size: int) -> int:
    """The bytes that a source takes, without the tables of all n-grams."""
    samplers = sum(table_entries(size) * (16 + 4 * order) for order in layout.orders)
    bitmaps = len(layout.orders) * (BITS // 8)
    return samplers + bitmaps + OccurrenceSampler(layout, size).memory

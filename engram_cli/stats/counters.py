"""Row hits and n-gram samples of a layout: what a corpus is reduced to, and how it merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.hashing import kernels as hash_kernels
from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats import kernels
from engram_cli.stats.distinct import NgramSample, Sampler
from engram_cli.stats.passage import Passage
from engram_cli.stats.state import State, nested, numbered, part_of, take_into

if TYPE_CHECKING:
    from engram_cli.stats.collector import Collector, RowWatcher

FULL = 2**32 - 1  # a counter that reached this stays there
# The columns of so many tokens are hashed, then counted one by one: 128 KB x 4 a column. Larger
# steps meet the rows of a column more often while they are in the caches; memory speaks against.
STEP = 2**17


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """What was counted in a corpus.

    `hits`: layer -> uint32[rows], how often each global row was looked up; `samples`: one an order;
    `joined`: documents were hashed as one stream.
    """

    layout: HashLayout
    tokens: int
    documents: int
    joined: bool
    hits: Mapping[int, NDArray[np.uint32]]
    samples: tuple[NgramSample, ...]

    def merge(self, other: Counts) -> Counts:
        """The counts of both corpora, in new arrays. Raises MismatchError for another layout."""
        if self.layout.fingerprint != other.layout.fingerprint or self.joined != other.joined:
            raise MismatchError(
                "counts of two layouts do not merge",
                "count both corpora with the same vocabulary, geometry and --join-documents",
            )
        hits = {}
        for layer, own in self.hits.items():
            hits[layer] = own.copy()
            kernels.add_hits(hits[layer], np.require(other.hits[layer], requirements=("C", "W")))
        return Counts(
            layout=self.layout,
            tokens=self.tokens + other.tokens,
            documents=self.documents + other.documents,
            joined=self.joined,
            hits=hits,
            samples=tuple(
                one.merge(two) for one, two in zip(self.samples, other.samples, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnGroup:
    """Neighbouring columns of one order of a layer, hashed together and counted by one thread.

    `watchers` are shown the rows of the first of them.
    """

    plan: LayerPlan
    order: int  # its index in the layout
    columns: slice
    hits: NDArray[np.uint32]
    watchers: tuple[RowWatcher, ...] = ()

    @property
    def width(self) -> int:
        """How many columns."""
        return int(self.columns.stop - self.columns.start)

    def push(self, passage: Passage, scratch: NDArray[np.uint32]) -> None:
        """Count the rows of at most `STEP` tokens; `scratch` is flat and large enough."""
        plan, columns, window = self.plan, self.columns, passage.window
        rows = scratch[: self.width * len(window)].reshape(self.width, len(window))
        order = slice(self.order, self.order + 1)
        hash_kernels.hash_columns(
            window.tokens,
            window.seen,
            plan.filler,
            plan.multipliers[order],
            plan.orders[order],
            plan.shared,
            plan.moduli[columns],
            plan.salts[columns],
            plan.fast[columns],
            rows,
        )
        kernels.count_columns(rows, plan.offsets[columns], plan.moduli[columns], self.hits)
        for watcher in self.watchers:
            watcher.push_rows(rows[0], passage)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """What one thread counts: no other thread writes to its columns, samples or collectors."""

    groups: tuple[ColumnGroup, ...]
    samplers: tuple[Sampler, ...]
    collectors: tuple[Collector, ...] = ()

    def scratch(self) -> NDArray[np.uint32]:
        """Room for the rows of the widest group."""
        return np.empty(max((g.width for g in self.groups), default=0) * STEP, dtype=np.uint32)

    def push(self, passage: Passage, scratch: NDArray[np.uint32]) -> None:
        """Count at most `STEP` tokens."""
        for group in self.groups:
            group.push(passage, scratch)
        for sampler in self.samplers:
            sampler.push(passage.window)
        for collector in self.collectors:
            collector.push(passage)


class Counter:
    """The counters and samplers of a layout, divided into shares for threads."""

    def __init__(
        self,
        layout: HashLayout,
        sample_size: int,
        threads: int,
        collectors: Sequence[Collector] = (),
    ) -> None:
        self.layout = layout
        self.hits = {e.layer: np.zeros(e.rows, dtype=np.uint32) for e in layout.layers}
        self.samplers = tuple(
            Sampler(order, layout.filler_id, sample_size) for order in layout.orders
        )
        self.collectors = tuple(collectors)
        self.shares = self._divide(threads)

    def counts(self, *, tokens: int, documents: int, joined: bool) -> Counts:
        """What was counted; the arrays are not copied."""
        return Counts(
            layout=self.layout,
            tokens=tokens,
            documents=documents,
            joined=joined,
            hits=self.hits,
            samples=tuple(sampler.sample() for sampler in self.samplers),
        )

    def state(self) -> State:
        """Of counters, samplers and collectors; no thread may be counting."""
        return nested(
            hits={str(layer): hits for layer, hits in self.hits.items()},
            samplers=numbered([sampler.state() for sampler in self.samplers]),
            collectors=numbered([collector.state() for collector in self.collectors]),
        )

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError; this one is of no use then."""
        for layer, hits in self.hits.items():
            take_into(state, f"hits/{layer}", hits)
        for index, sampler in enumerate(self.samplers):
            sampler.restore(part_of(state, f"samplers/{index}"))
        for index, collector in enumerate(self.collectors):
            collector.restore(part_of(state, f"collectors/{index}"))

    def _divide(self, threads: int) -> tuple[Share, ...]:
        """Lay columns, samplers and collectors on a line, long as their cost; cut it equally."""
        layout = self.layout
        columns = len(layout.layers) * layout.columns
        cost = sampler_cost(layout)
        sampled = columns + cost * len(layout.orders)
        ends = np.cumsum([sampled, *(collector.cost for collector in self.collectors)])
        line = int(ends[-1])
        threads = max(min(threads, columns), 1)
        plans = [plan_layer(layout, entry) for entry in layout.layers]
        shares = []
        for thread in range(threads):
            begin, end = line * thread // threads, line * (thread + 1) // threads
            samplers = tuple(
                sampler
                for index, sampler in enumerate(self.samplers)
                if begin <= columns + cost * index + cost // 2 < end
            )
            collectors = tuple(
                collector
                for collector, last in zip(self.collectors, ends[1:], strict=True)
                if begin <= min(int(last) - (collector.cost + 1) // 2, line - 1) < end
            )
            groups = tuple(self._groups(plans, begin, end))
            shares.append(Share(groups=groups, samplers=samplers, collectors=collectors))
        return tuple(shares)

    def _groups(self, plans: list[LayerPlan], begin: int, end: int) -> Iterator[ColumnGroup]:
        """The columns begin..end-1 of all layers in turn, by layer and order."""
        layout, heads, at = self.layout, self.layout.heads, 0
        for entry, plan in zip(self.layout.layers, plans, strict=True):
            for order in range(len(layout.orders)):
                first, last = max(begin - at, 0), min(end - at, heads)
                collectors = self.collectors if first == 0 else ()
                if first < last:
                    watching = (c.watcher(entry.layer, layout.orders[order]) for c in collectors)
                    yield ColumnGroup(
                        plan=plan,
                        order=order,
                        columns=slice(order * heads + first, order * heads + last),
                        hits=self.hits[entry.layer],
                        watchers=tuple(w for w in watching if w is not None),
                    )
                at += heads


def sampler_cost(layout: HashLayout) -> int:
    """How many columns are counted in the time of drawing the sample of an order: measured 3 where
    the counters of a column stay in the caches, 0.5 where they do not."""
    largest = max(modulus for entry in layout.layers for modulus in entry.moduli)
    return 3 if largest <= 2**20 else 1

"""What vocabulary compression is worth: the section "uncompressed" of stats.json.

The twin of a layout has the same geometry and takes token ids as they are. It counts the corpus
once more, with raw ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.charts import (
    Axis,
    Bar,
    BarChart,
    Group,
    Slot,
    grouped,
    order_color,
    order_name,
    share_axis,
)
from engram_cli.errors import ArtifactError, InputError
from engram_cli.hashing.hasher import Window
from engram_cli.hashing.layout import INT64, HashLayout
from engram_cli.numbers import mean
from engram_cli.registry import LazyModule
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.counters import Counter, buffer_bytes
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.by_use import uses_of
from engram_cli.stats.sampling.distinct import sampler_bytes
from engram_cli.stats.sampling.known import SampleHits
from engram_cli.stats.sampling.occurrences import Occurrences, drawn_ngrams
from engram_cli.stats.sampling.text_ngrams import Budget, TextNgrams, exact_ngrams, read_text
from engram_cli.stats.state import State, nested, part_of, take, take_into
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.stats.statistics.collisions import COLUMNS, ColumnStats, column_stats
from engram_cli.stats.statistics.orders import ORDERS, OrderStats, order_stats
from engram_cli.stats.totals import Counts
from engram_cli.view import Cell, Estimate, Row, Table, View, counts, percents

kernels = LazyModule("engram_cli.stats.counting.kernels")


@dataclass(frozen=True, slots=True, kw_only=True)
class UncompressedResult:
    """The figures of each order and column with raw ids, as `orders` and `columns` without."""

    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UncompressedPartial:
    """What the `twin` of a layout counted: the hits of each layer, and the n-grams of the text."""

    twin: HashLayout
    hits: Mapping[int, NDArray[np.uint32]]
    text: TextNgrams

    def state(self) -> State:
        """Return hits and samples, as those of the layout itself."""
        return nested(hits={str(layer): hits for layer, hits in self.hits.items()}) | (
            self.text.state()
        )

    def merge(self, other: UncompressedPartial) -> UncompressedPartial:
        """Return that of both parts. Raises MismatchError for another --sample-size."""
        text = self.text.merge(other.text)
        hits = {layer: own.copy() for layer, own in self.hits.items()}
        for layer, own in hits.items():
            kernels.add_hits(own, np.require(other.hits[layer], requirements=("C", "W")))
        return UncompressedPartial(twin=self.twin, hits=hits, text=text)

    def result(self, counts: Counts) -> UncompressedResult:
        """Return the figures of each order and column."""
        own = replace(counts, layout=self.twin, hits=self.hits, samples=self.text.samples)
        samples = self.text.best
        drawn = drawn_ngrams(self.text.occurrences, self.twin.orders)
        hits = [SampleHits(counts=own, sample=sample) for sample in samples]
        uses = [uses_of(*pair) for pair in zip(hits, drawn, strict=True)]
        return UncompressedResult(
            orders=order_stats(samples, own.tokens), columns=column_stats(own, hits, uses)
        )


def read_uncompressed(layout: HashLayout, state: State) -> UncompressedPartial:
    """Return the partial in a `state`. Raises ArtifactError."""
    twin = uncompressed_twin(layout)
    if not part_of(state, "occurrences"):
        raise ArtifactError(
            "its raw ids were counted by an earlier version, which knew less of them",
            "count it again",
        )
    hits = {e.layer: take(state, f"hits/{e.layer}", np.uint32, (e.rows,)) for e in twin.layers}
    return UncompressedPartial(twin=twin, hits=hits, text=read_text(twin, state, 2**63, seen=False))


class Uncompressed(Collector):
    """Counts what the twin of a layout looks up."""

    name = "uncompressed"

    def __init__(self, layout: HashLayout, sample_size: int, exact: Budget | None = None) -> None:
        """`exact`: count every n-gram, in so much memory.

        Raises InputError for a layout that takes token ids as they are.
        """
        self.layout = uncompressed_twin(layout)
        self._size = sample_size
        self._exact = () if exact is None else exact_ngrams(self.layout, exact)
        self._occurrences = Occurrences(self.layout)
        self._counter = Counter(self.layout, sample_size, (*self._exact, self._occurrences))
        self._lane = self._counter.lane()
        self._history = np.full(layout.max_order - 1, self.layout.filler_id, dtype=np.int32)

    @property
    def memory(self) -> int:
        """The bytes of counters and samples, once more."""
        samples = sum(sampler_bytes(order, self._size) for order in self.layout.orders)
        samples += self._occurrences.memory
        return (
            4 * sum(entry.rows for entry in self.layout.layers)
            + samples
            + buffer_bytes(self.layout)
        )

    def push(self, chunk: TokenChunk) -> None:
        """Count the raw ids of a chunk; look-back ends where it ends in the compressed ones."""
        tokens = np.concatenate([self._history, chunk.ids.astype(np.int32)])
        self._history = tokens[len(tokens) - len(self._history) :].copy()
        window = Window(tokens=tokens, seen=chunk.window.seen)
        self._counter.push(replace(chunk, window=window), self._lane)

    def state(self) -> State:
        """Return the state of the counters, and the last tokens."""
        return nested(counter=self._counter.state()) | {"history": self._history}

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        self._counter.restore(part_of(state, "counter"))
        take_into(state, "history", self._history)

    def partial(self) -> UncompressedPartial:
        """Return hits, samples and all n-grams that were counted."""
        self._counter.settle()
        text = TextNgrams(
            samples=tuple(sampler.sample() for sampler in self._counter.samplers),
            every=tuple(table.partial() for table in self._exact),
            occurrences=self._occurrences.partial(),
        )
        return UncompressedPartial(twin=self.layout, hits=self._counter.hits, text=text)


def uncompressed_twin(layout: HashLayout) -> HashLayout:
    """Return a layout over raw ids with the moduli of `layout`.

    Its multipliers are halved where the larger ids would overflow, and stay odd. Raises InputError
    for a layout without a vocabulary.
    """
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


def view(found: UncompressedResult, results: Results) -> Iterable[View]:
    """Draw distinct n-grams and sharing with and without compression, by order."""
    raw = grouped(found.columns, lambda column: column.order)
    own = grouped(results.listed(COLUMNS), lambda column: column.order)
    rows: list[tuple[Cell, ...]] = []
    ngrams, sharing = [], []
    if not (orders := results.listed(ORDERS)):
        return
    for old, new in zip(found.orders, orders, strict=True):
        before, after = raw.get(new.order, []), own.get(new.order, [])
        shares = mean(each.shared for each in before), mean(each.shared for each in after)
        distinct = Estimate(old.distinct, old.distinct_error)
        fewer = 1.0 - new.distinct / max(old.distinct, 1.0)
        rows.append(
            (
                *(new.order, distinct, Estimate(new.distinct, new.distinct_error), fewer),
                *(*shares, _by_use(before), _by_use(after)),
            )
        )
        ngrams.append(_slot(new.order, old.distinct, new.distinct))
        sharing.append(_slot(new.order, *shares))
    names = ("fewer", "sharing, raw ids", "compressed", "by use, raw ids", "compressed")
    columns = (*counts("order", "distinct, raw ids", "compressed"), *percents(*names, digits=1))
    charts = (
        BarChart(
            name="worth-ngrams",
            title="Distinct n-grams",
            description="Two bars for each order: raw token ids, and the compressed vocabulary.",
            y=Axis("distinct n-grams", low=0.0),
            groups=(Group("", tuple(ngrams)),),
        ),
        BarChart(
            name="worth-sharing",
            title="N-grams that share their row",
            description="Two bars for each order: raw token ids, and the compressed vocabulary.",
            note="mean of all heads",
            y=share_axis("n-grams that share their row"),
            groups=(Group("", tuple(sharing)),),
        ),
    )
    yield View(
        name="compression",
        title="What vocabulary compression is worth",
        lead="Compression gives look-alike tokens one id, so that spellings of the same n-gram "
        "meet on one row: fewer distinct n-grams, fewer n-grams that share a row.",
        parts=(Row(charts), Table("Effect of compressing the vocabulary", columns, tuple(rows))),
    )


def _slot(order: int, before: float, after: float) -> Slot:
    color = order_color(order)
    without = Bar("raw token ids", color, before, light=True)
    return Slot(order_name(order), (without, Bar("compressed vocabulary", color, after)))


def _by_use(columns: Sequence[ColumnStats]) -> Estimate:
    """Return the mean share and the mean error of columns, which use the same sample."""
    shares = [(each.shared_occurrences, each.shared_occurrences_error) for each in columns]
    return Estimate(mean(share for share, _ in shares), mean(error for _, error in shares))


def _collect(plan: CollectorPlan) -> Uncompressed | None:
    if not plan.options.compare_uncompressed:
        return None
    return Uncompressed(plan.layout, plan.sample_size, plan.exact)


UNCOMPRESSED = Statistic(
    key="uncompressed",
    kind=UncompressedResult,
    view=view,
    collect=_collect,
    read_partial=read_uncompressed,
)

"""What a part of a corpus leaves behind, whole: counts and the partials of all that was looked at.

Partials merge in any order and grouping into that of the whole corpus, to the bit. They travel as
named arrays, between the workers of an engine or through statistics folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engram_cli.errors import ArtifactError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats import STATISTICS
from engram_cli.stats.collector import Collector
from engram_cli.stats.exact import ExactNgrams
from engram_cli.stats.occurrences import Occurrences
from engram_cli.stats.samples import samples_of, samples_state
from engram_cli.stats.state import State, check, nested, part_of, scalar, take, take_scalar
from engram_cli.stats.totals import Counts

EXACT = "exact-"  # begins the name of the partial of exact counting of an order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partial:
    """`counts`, and what each collector found by its name (`partial_name`)."""

    counts: Counts
    collected: Mapping[str, State]

    def merge(self, other: Partial) -> Partial:
        """That of both parts; what only one of them has is left out.

        Raises MismatchError for parts counted in two ways, ArtifactError.
        """
        layout = self.counts.layout
        both = [name for name in self.collected if name in other.collected]
        return Partial(
            counts=self.counts.merge(other.counts),
            collected={
                name: merged_states(name, layout, self.collected[name], other.collected[name])
                for name in both
            },
        )

    def state(self) -> State:
        """All of it as named arrays, without the layout; it may share memory."""
        counts = self.counts
        hits = {str(layer): hits for layer, hits in counts.hits.items()}
        own = {
            "tokens": scalar(counts.tokens),
            "documents": scalar(counts.documents),
            "joined": scalar(counts.joined),
        }
        return own | nested(
            hits=hits, samples=samples_state(counts.samples), collected=nested(**self.collected)
        )


def read_partial(layout: HashLayout, state: State) -> Partial:
    """The partial in a `state`. Raises ArtifactError for an unsound one."""
    tokens = take_scalar(state, "tokens")
    found = part_of(state, "collected")
    ids = range(layout.compressed_size)
    return Partial(
        counts=Counts(
            layout=layout,
            tokens=tokens,
            documents=take_scalar(state, "documents"),
            joined=bool(take_scalar(state, "joined", 0, 1)),
            hits={
                entry.layer: take(state, f"hits/{entry.layer}", "uint32", (entry.rows,))
                for entry in layout.layers
            },
            samples=samples_of(part_of(state, "samples"), layout.orders, ids, tokens),
        ),
        collected={
            name: part_of(found, name) for name in dict.fromkeys(n.split("/")[0] for n in found)
        },
    )


def partial_name(collector: Collector) -> str:
    """Under which name the partial of a collector goes."""
    if isinstance(collector, ExactNgrams):
        return f"{EXACT}{collector.order}"
    return collector.name


def blank_for(name: str, layout: HashLayout, state: State) -> Collector:
    """A collector that absorbs partials of that name, such as `state`. Raises ArtifactError."""
    if name.startswith(EXACT):
        order = next((n for n in layout.orders if name == f"{EXACT}{n}"), None)
        check(order is not None, name)
        return ExactNgrams.blank_for(layout, order or 0)
    if name == Occurrences.name:
        return Occurrences.blank_for(layout, state)
    blank = STATISTICS.load(name).blank if name in STATISTICS else None
    if blank is None:
        raise ArtifactError(f"'{name}' is no partial of this version", "upgrade engram")
    return blank(layout, state)


def merged_states(name: str, layout: HashLayout, *states: State) -> State:
    """The partial of all parts. Raises ArtifactError, MismatchError, and InputError for more
    sources or n-grams than can be held."""
    collector = blank_for(name, layout, states[0])
    for state in states:
        collector.absorb(state)
    return collector.partial()

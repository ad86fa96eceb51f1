"""What counting a part of a corpus leaves behind: counts, and the partials of all collectors.

Partials merge in any order and grouping into that of the whole corpus, to the bit. They travel as
named arrays, between the workers of an engine or through statistics folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import CollectorPartial
from engram_cli.stats.collector_set import read_collected
from engram_cli.stats.samples import samples_of, samples_state
from engram_cli.stats.state import State, nested, part_of, scalar, take, take_scalar
from engram_cli.stats.totals import Counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partial:
    """The `counts`, and what each collector found, by its name."""

    counts: Counts
    collected: Mapping[str, CollectorPartial]

    def merge(self, other: Partial) -> Partial:
        """Return that of both parts; what only one of them has is left out.

        Raises MismatchError for parts counted in two ways, TooManySources.
        """
        return Partial(
            counts=self.counts.merge(other.counts),
            collected={
                name: partial.merge(other.collected[name])
                for name, partial in self.collected.items()
                if name in other.collected
            },
        )

    def results(self) -> dict[str, object]:
        """Return the results of the collectors, by statistic; some have none."""
        found = {name: partial.result(self.counts) for name, partial in self.collected.items()}
        return {name: result for name, result in found.items() if result is not None}

    def states(self) -> dict[str, State]:
        """Return what the collectors found as named arrays, by collector."""
        return {name: partial.state() for name, partial in self.collected.items()}

    def state(self) -> State:
        """Return all of it as named arrays, without the layout; it may share memory."""
        counts = self.counts
        hits = {str(layer): hits for layer, hits in counts.hits.items()}
        own = {
            "tokens": scalar(counts.tokens),
            "documents": scalar(counts.documents),
            "joined": scalar(counts.joined),
        }
        return own | nested(
            hits=hits, samples=samples_state(counts.samples), collected=nested(**self.states())
        )


def read_partial(layout: HashLayout, state: State) -> Partial:
    """Return the partial in a `state`. Raises ArtifactError for an unsound one."""
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
        collected=read_collected(
            layout,
            {name: part_of(found, name) for name in dict.fromkeys(n.split("/")[0] for n in found)},
        ),
    )

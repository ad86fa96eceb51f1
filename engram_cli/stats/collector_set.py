"""Makes the collectors of a run of hash-stats, and reads the partials that they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engram_cli.corpus.base import CorpusFile
from engram_cli.errors import ArtifactError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats import STATISTICS
from engram_cli.stats.collector import Collector, CollectorPartial
from engram_cli.stats.counting.holdout import Holdout
from engram_cli.stats.sampling.occurrences import Occurrences, read_occurrences
from engram_cli.stats.sampling.text_ngrams import (
    EXACT,
    EXACT_OF,
    AllNgrams,
    Budget,
    exact_ngrams,
    read_all,
)
from engram_cli.stats.state import State, check
from engram_cli.stats.statistic import CollectorOptions, CollectorPlan
from engram_cli.stats.statistics.sources import GROUPINGS, group_files

# The share of the free memory that exact counting may take: other programs need some too.
_EXACT_SHARE = 0.9
MOST_EXACT = 2**26  # n-grams of all orders that a folder keeps, 1 to 2 GB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectorSet:
    """Holds the collectors of one run over the corpus."""

    collectors: tuple[Collector, ...]
    holdout: Holdout | None = None

    @property
    def memory(self) -> int:
        """The bytes they take; for exact counting, the bytes it starts with."""
        held = 0 if self.holdout is None else self.holdout.memory
        return held + sum(collector.memory for collector in self.collectors)

    @property
    def thread_memory(self) -> int:
        """The bytes of those that each thread has of its own."""
        return sum(each.memory for each in self.collectors if each.replicated)

    def partials(self) -> dict[str, CollectorPartial]:
        """Return the partials of all collectors, by name; nothing is counted afterwards."""
        return {collector.name: collector.partial() for collector in self.collectors}


def make_collectors(
    collector_options: CollectorOptions,
    layout: HashLayout,
    source_of: Mapping[str, str] | None,
    sample_size: int,
) -> CollectorSet:
    """Return new collectors; `source_of` as `sources_of` gives it.

    Raises InputError for what this layout or memory does not allow.
    """
    budget = Budget(collector_options.exact_bytes) if collector_options.exact else None
    holdout = None if collector_options.holdout is None else Holdout(collector_options.holdout)
    plan = CollectorPlan(
        options=collector_options,
        layout=layout,
        sample_size=sample_size,
        source_of=source_of,
        exact=budget,
        holdout=holdout,
    )
    made = (collect(plan) for key in STATISTICS if (collect := STATISTICS.load(key).collect))
    others = (Occurrences(layout), *(collector for collector in made if collector is not None))
    exact = () if budget is None else exact_ngrams(layout, budget)
    return CollectorSet(collectors=(*exact, *others), holdout=holdout)


def read_collected(layout: HashLayout, states: Mapping[str, State]) -> dict[str, CollectorPartial]:
    """Return the partials of collectors, by name. Raises ArtifactError for an unsound one."""
    return {name: _read_partial(name, layout, state) for name, state in states.items()}


def _read_partial(name: str, layout: HashLayout, state: State) -> CollectorPartial:
    if name.startswith(EXACT_OF):
        order = next((n for n in layout.orders if name == f"{EXACT_OF}{n}"), None)
        check(order is not None, name)
        return read_all(layout, order or 0, state)
    if name == Occurrences.name:
        return read_occurrences(layout, state)
    read = STATISTICS.load(name).read_partial if name in STATISTICS else None
    if read is None:
        raise ArtifactError(f"'{name}' is no partial of this version", "upgrade engram")
    return read(layout, state)


def kept_states(states: Mapping[str, State]) -> Mapping[str, State]:
    """Return the partials that a statistics folder stores: exact counts up to `MOST_EXACT`."""
    exact = [
        array
        for name, state in states.items()
        for key, array in state.items()
        if key.endswith("counts") and (name.startswith(EXACT_OF) or EXACT in key.split("/"))
    ]
    if sum(map(len, exact)) <= MOST_EXACT:
        return states
    return {
        name: {key: array for key, array in state.items() if EXACT not in key.split("/")}
        for name, state in states.items()
        if not name.startswith(EXACT_OF)
    }


def sources_of(files: Sequence[CorpusFile], by: str | None) -> dict[str, str] | None:
    """Return key of a file or section -> source; None unless files are the sources."""
    if by not in GROUPINGS:  # labels of documents say it
        return None
    sizes: dict[str, int | None] = {}
    for file in files:
        sizes[file.name] = (sizes.get(file.name) or 0) + (file.size or 0)
    source_of = group_files(sizes, by)
    return {file.key: source_of[file.name] for file in files}


def check_exact_memory(
    collector_options: CollectorOptions, partials: Mapping[str, CollectorPartial]
) -> None:
    """Raise InputError when all n-grams, counted elsewhere, do not fit into `exact_bytes` here."""
    every = [partial for partial in partials.values() if isinstance(partial, AllNgrams)]
    Budget(collector_options.exact_bytes).take(
        sum(partial.memory for partial in every), "all n-grams together"
    )


def exact_memory(available: int | None, planned: int) -> int | None:
    """Return the bytes left for exact counting after `planned`; None when unknown."""
    return None if available is None else max(int(_EXACT_SHARE * (available - planned)), 0)

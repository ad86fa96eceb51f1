"""Makes the collectors of a run of hash-stats, and combines their partials and sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engram_cli.corpus.base import CorpusFile
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats import STATISTICS
from engram_cli.stats.collector import Collector
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.exact import EXACT, Budget, ExactNgrams, exact_ngrams
from engram_cli.stats.holdout import Holdout
from engram_cli.stats.occurrences import Occurrences, OccurrenceSample
from engram_cli.stats.partial import partial_name
from engram_cli.stats.sources import GROUPINGS, group_files
from engram_cli.stats.state import State
from engram_cli.stats.statistic import CollectorPlan

# The share of the free memory that exact counting may take: other programs need some too.
_EXACT_SHARE = 0.9
MOST_EXACT = 2**26  # n-grams of all orders that a folder keeps, 1 to 2 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorOptions:
    """Says which optional statistics to collect.

    `exact`: every n-gram counted, within `exact_bytes`; `compare_uncompressed`: raw ids counted
    too; `group_by`: sources separated by "file", "folder", or a field that labels documents;
    `locality`: hot rows, windows and caches; `holdout`: the share of the corpus that is not counted
    and only looked up, which asks for `locality` too; `growth`: how the n-grams grow with the
    corpus.
    """

    exact: bool = False
    exact_bytes: int | None = None
    compare_uncompressed: bool = False
    group_by: str | None = None
    locality: bool = False
    holdout: float | None = None
    growth: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectorSet:
    """Holds the collectors of one run over the corpus."""

    exact: tuple[ExactNgrams, ...]
    others: tuple[Collector, ...]
    holdout: Holdout | None = None

    def partials(self) -> dict[str, State]:
        """Return the partials of all collectors, by name; nothing is counted afterwards."""
        return {partial_name(collector): collector.partial() for collector in self.collectors}

    def kept_partials(self) -> dict[str, State]:
        """Return the partials that a statistics folder stores: exact counts up to `MOST_EXACT`."""
        partials = self.partials()
        if sum(_exact_ngrams(state) for state in partials.values()) <= MOST_EXACT:
            return partials
        others = {collector.name: partials[collector.name] for collector in self.others}
        return {
            name: {key: array for key, array in state.items() if EXACT not in key.split("/")}
            for name, state in others.items()
        }

    def absorb(self, partials: Mapping[str, State]) -> None:
        """Merge the partials of a part of the corpus, made by collectors like these."""
        for collector in self.collectors:
            collector.absorb(partials[partial_name(collector)])

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """All collectors."""
        return (*self.exact, *self.others)

    @property
    def memory(self) -> int:
        """The bytes they take; for exact counting, the bytes it starts with."""
        held = 0 if self.holdout is None else self.holdout.memory
        return held + sum(collector.memory for collector in self.collectors)

    def samples(self) -> tuple[NgramSample, ...]:
        """Return all n-grams of each order, () unless every one was counted. Call once."""
        return tuple(table.sample() for table in self.exact)

    @property
    def occurrences(self) -> OccurrenceSample | None:
        """The sample of positions."""
        return occurrences_of(self.others)


def _exact_ngrams(state: State) -> int:
    """Return how many n-grams of exact counting a partial holds."""
    exact = [name for name in state if EXACT in name.split("/") or name == "counts"]
    return sum(len(state[name]) for name in exact if name.endswith("counts"))


def occurrences_of(collectors: Sequence[Collector]) -> OccurrenceSample | None:
    """Return the sample of positions; None in statistics of earlier versions."""
    return next((each.sample() for each in collectors if isinstance(each, Occurrences)), None)


def sources_of(files: Sequence[CorpusFile], by: str | None) -> dict[str, str] | None:
    """Return key of a file or section -> source; None unless files are the sources."""
    if by not in GROUPINGS:  # labels of documents say it
        return None
    sizes: dict[str, int | None] = {}
    for file in files:
        sizes[file.name] = (sizes.get(file.name) or 0) + (file.size or 0)
    source_of = group_files(sizes, by)
    return {file.key: source_of[file.name] for file in files}


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
    return CollectorSet(exact=exact, others=others, holdout=holdout)


def exact_memory(available: int | None, planned: int) -> int | None:
    """Return the bytes left for exact counting after `planned`; None when unknown."""
    return None if available is None else max(int(_EXACT_SHARE * (available - planned)), 0)

"""Defines a statistic: what it collects or computes, its typed result, and its view.

A statistic is one module with a `Statistic`, and one line in `stats/__init__.py`. Everything else
goes over that registry: `hash-stats` and its `--merge`, `verify`, stats.json, the terminal and the
page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from engram_cli.errors import ArtifactError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.arrays import REMAKE
from engram_cli.stats.collector import Collector, CollectorPartial
from engram_cli.stats.names import Names
from engram_cli.stats.sampling.by_use import Uses
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.known import KnownNgrams, SampleHits
from engram_cli.stats.state import State
from engram_cli.stats.totals import Counts
from engram_cli.typed_json import read_json_as
from engram_cli.view import View

if TYPE_CHECKING:
    from engram_cli.stats.counting.holdout import Holdout
    from engram_cli.stats.sampling.text_ngrams import Budget

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counted:
    """A counted corpus, as statistics without a collector need it.

    `hits`: the n-grams to go by, one sample for each order, with the hits of their rows; `uses`:
    what stands for all occurrences of each order, None where the sample is complete; `known`: the
    n-grams whose counts or upper bounds are known; `names`: their texts.
    """

    counts: Counts
    hits: tuple[SampleHits, ...]
    uses: tuple[Uses | None, ...]
    known: tuple[KnownNgrams, ...]
    names: Names

    @property
    def samples(self) -> tuple[NgramSample, ...]:
        """The samples alone."""
        return tuple(hits.sample for hits in self.hits)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorOptions:
    """Says which optional statistics to collect.

    `exact`: every n-gram counted, within `exact_bytes`; `compare_uncompressed`: raw ids counted
    too; `group_by`: sources separated by "file", "folder", or a field that labels documents;
    `locality`: hot rows and caches; `holdout`: the share of the corpus that is not counted and only
    looked up, which asks for `locality` too; `growth`: how the n-grams grow with the corpus.
    """

    exact: bool = False
    exact_bytes: int | None = None
    compare_uncompressed: bool = False
    group_by: str | None = None
    locality: bool = False
    holdout: float | None = None
    growth: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectorPlan:
    """What a collector is made for: the options of the run, its layout, and what it shares.

    `source_of`: the source of each file by its key, None unless files are the sources;
    `exact`: the memory that exact counting shares, None without it; `holdout`: the part of the
    corpus that is looked up and not counted.
    """

    options: CollectorOptions
    layout: HashLayout
    sample_size: int
    source_of: Mapping[str, str] | None
    exact: Budget | None
    holdout: Holdout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The typed results of statistics by their key in stats.json, and the size of the corpus."""

    tokens: int
    documents: int
    found: Mapping[str, object]

    def get(self, statistic: Statistic[R]) -> R | None:
        """Return the result of a statistic; None if it was not collected."""
        return cast(R | None, self.found.get(statistic.key))

    def listed(self, statistic: Statistic[tuple[T, ...]]) -> tuple[T, ...]:
        """Return the result of a statistic that is a tuple; () if it was not collected."""
        return self.get(statistic) or ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic(Generic[R]):
    """One statistic. `key`: its key in stats.json; `kind`: the type of its result.

    `view` draws a result, and may look at those of other statistics. A result comes either from
    `compute`, which gets what was counted and returns None where that does not suffice, or from a
    collector: `collect` makes one for a run, or
    returns None if its options leave the statistic out; `read_partial` reads what it left.
    """

    key: str
    kind: type[R]
    view: Callable[[R, Results], Iterable[View]]
    compute: Callable[[Counted], R | None] | None = None
    collect: Callable[[CollectorPlan], Collector | None] | None = None
    read_partial: Callable[[HashLayout, State], CollectorPartial] | None = None

    def read(self, value: object) -> R:
        """Return the result from its JSON. Raises ArtifactError."""
        return read_typed(self.kind, value, f"'{self.key}'")


def read_typed(kind: type[R], value: object, where: str) -> R:
    """Return a part of stats.json as `kind`; `where` names it. Raises ArtifactError."""
    try:
        return read_json_as(kind, value, where)
    except ValueError as error:
        raise ArtifactError(f"{error}: it cannot be drawn", REMAKE) from None

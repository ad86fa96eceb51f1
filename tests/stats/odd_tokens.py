"""A statistic in one module, as somebody would add it: how many token ids are odd."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engram_cli.charts import Bar, BarChart, Group, Slot, share_axis
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.state import State, scalar, take_scalar
from engram_cli.stats.statistic import CollectorPlan, Results, Statistic
from engram_cli.stats.totals import Counts
from engram_cli.view import Table, View, counts, percents


@dataclass(frozen=True, slots=True, kw_only=True)
class OddTokens:
    """The tokens of the corpus with an odd id."""

    odd: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OddPartial:
    """The odd ids of a part of the corpus."""

    odd: int

    def state(self) -> State:
        return {"odd": scalar(self.odd)}

    def merge(self, other: OddPartial) -> OddPartial:
        return OddPartial(odd=self.odd + other.odd)

    def result(self, counts: Counts) -> OddTokens:
        return OddTokens(odd=self.odd, tokens=counts.tokens)


class OddCollector(Collector):
    """Counts odd ids."""

    name = "odd_tokens"

    def __init__(self) -> None:
        self._odd = 0

    def push(self, chunk: TokenChunk) -> None:
        self._odd += int(np.sum(chunk.ids & 1))

    def partial(self) -> OddPartial:
        return OddPartial(odd=self._odd)


def view(found: OddTokens, results: Results) -> Iterable[View]:
    share = found.odd / found.tokens
    slot = Slot("all", (Bar("odd", 0, share),))
    chart = BarChart(
        name="odd",
        title="Odd ids",
        description="One bar.",
        y=share_axis("share"),
        groups=(Group("", (slot,)),),
    )
    columns = (*counts("odd tokens"), *percents("odd share", digits=1))
    table = Table("Tokens with an odd id", columns, ((found.odd, share),))
    yield View(name="odd-tokens", title="Odd tokens", lead="", parts=(chart, table))


def collect(plan: CollectorPlan) -> OddCollector:
    return OddCollector()


def read_partial(layout: HashLayout, state: State) -> OddPartial:
    return OddPartial(odd=take_scalar(state, "odd"))


ODD_TOKENS = Statistic(
    key="odd_tokens", kind=OddTokens, view=view, collect=collect, read_partial=read_partial
)

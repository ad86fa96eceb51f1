"""What a plan knows of the corpus: statistics, or a vocabulary and a number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from engram_cli.commands.geometry import Geometry
from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout, LayerHash, short
from engram_cli.hashing.schemes import hash_layout, takes_raw_ids
from engram_cli.progress import Progress
from engram_cli.stats.statistic import Statistic
from engram_cli.stats.statistics.growth_curve import OrderGrowth, project
from engram_cli.stats.statistics.growth_view import GROWTH
from engram_cli.stats.statistics.locality import LOCALITY, order_hits
from engram_cli.stats.statistics.orders import ORDERS
from engram_cli.stats.stats_io import Statistics, read_stats
from engram_cli.table.planning.batches import BatchShare, batch_share
from engram_cli.table.planning.estimates import Demand, HeldOut, held_out, hot_rows
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.parquet import read_map

_REMAKE = "make the statistics again with engram hash-stats --force"
SAME_SIZE = 1.02  # times the rows of a head: so near nothing changes that could be measured
HOT_FACTOR = 2.0  # times the tokens counted, or as small a part: other corpora heat other rows
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class HotShare:
    """The `rows` of all heads of an order, in all layers, that catch the hit rate asked for.

    `share` of that order's rows. `held_out`: measured on text that was not counted, which is what
    a model will meet; else on the counted corpus itself, which flatters. `reach`: the share of
    look-ups on rows that were hit; where it is less than asked for, `rows` and `share` are None.
    It is None where the counts do not tell. `at_most`: the counted heads are larger than the
    planned ones. Larger heads need at least as many hot rows, so `rows` is an upper bound.
    """

    order: int
    rows: int | None
    share: float | None
    held_out: bool
    reach: float | None
    at_most: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanCorpus:
    """The corpus that will be trained on: `tokens` of it, `statistics` of some of it, or none."""

    statistics: Statistics | None
    vocab: Path
    tokens: int

    @property
    def path(self) -> Path | None:
        """The statistics folder."""
        return None if self.statistics is None else self.statistics.path

    @property
    def counted_tokens(self) -> int | None:
        """The tokens behind the statistics."""
        return None if self.statistics is None else self.statistics.tokens

    @property
    def factor(self) -> float:
        """How many times the tokens counted it is; 1 where nothing was."""
        return self.tokens / (self.counted_tokens or self.tokens)

    def resolve(self, geometry: Geometry, size: int | None = None) -> HashLayout:
        """Return the layout of a geometry; the statistics decide its open choices.

        `size`: rows per head.

        Raises InputError, LayoutError.
        """
        if self.statistics is None:
            asked = geometry if size is None else replace(geometry, rows_per_head=(size,))
            return asked.resolve(self.vocab)
        counted = self.statistics.layout
        wanted = geometry.over(counted)
        if size is not None:
            wanted = replace(wanted, rows_per_head=(size,))
        if wanted == Geometry.from_layout(counted):
            return counted
        choices = wanted.given
        scheme = choices.pop("scheme")
        if scheme != counted.scheme:
            return wanted.resolve(self.vocab)
        if takes_raw_ids(scheme):
            choices["rows_per_head"] = choices["rows_per_head"][0]
            return hash_layout(scheme, **choices)
        if counted.lookup is None:
            return wanted.resolve(self.vocab)
        vocab = VocabMap(lookup=counted.lookup, size=counted.compressed_size)
        return hash_layout(scheme, vocab, **choices)

    def demands(self, orders: tuple[int, ...]) -> tuple[Demand, ...]:
        """Return the distinct n-grams of each order. Raises InputError for one not counted.

        A longer n-gram ends with a shorter one, so there are no fewer of them, whatever the samples
        of two orders say.
        """
        found: dict[int, Demand] = {}
        least = 0.0
        for order in sorted(orders):
            demand = self._demand(order, self.tokens)
            least = max(least, demand.distinct)
            found[order] = replace(demand, distinct=least)
        return tuple(found[order] for order in orders)

    def hits_tokens(self, layout: HashLayout) -> int | None:
        """Return how many tokens were counted for the hits that a build stores, or None."""
        statistics = self.statistics
        if statistics is None or statistics.layout.fingerprint != layout.fingerprint:
            return None
        return statistics.tokens

    @property
    def tells_hot_rows(self) -> bool:
        """Whether the counts are of about as many tokens, so that they say what will be hot."""
        return self.statistics is not None and 1 / HOT_FACTOR <= self.factor <= HOT_FACTOR

    def size_factor(self, layout: HashLayout) -> float:
        """Return how many times the rows of a counted head the layout has; the largest."""
        sizes = self._sizes(layout).values()
        return max((planned / counted for counted, planned in sizes), default=1.0)

    def hot_sets(self, layout: HashLayout, hit_rate: float) -> tuple[HotShare, ...]:
        """Return the hot rows of each order, from the counted heads.

        () unless `tells_hot_rows`, and for larger heads than were counted.
        """
        statistics = self.statistics
        if statistics is None or not self.tells_hot_rows or self.size_factor(layout) > SAME_SIZE:
            return ()
        counted = statistics.layout
        first = counted.layers[0]
        hits = statistics.hits(first.layer)
        found = []
        for at, (order, sizes) in enumerate(self._sizes(layout).items()):
            own = order_hits(counted, hits, first.layer, counted.orders.index(order))
            moduli = [m for entry in layout.layers for m in _moduli(entry, layout.heads, at)]
            curve = self._held_out(first.layer, order, int(np.count_nonzero(own)) / len(own))
            share: float | None
            if curve is None:
                share, reach = hot_rows(own, hit_rate) / len(own), 1.0
            else:
                share, reach = curve.share(hit_rate), curve.reach
            smaller = sizes[1] * SAME_SIZE < sizes[0]
            vague = share is None and (smaller or (curve is not None and not curve.exact))
            rows = None
            if share is not None:
                of_head = math.ceil(share * len(own) / counted.heads)
                rows = sum(min(of_head, modulus) for modulus in moduli)
            found.append(
                HotShare(
                    order=order,
                    rows=rows,
                    share=None if rows is None else rows / sum(moduli),
                    held_out=curve is not None,
                    reach=None if vague else reach,
                    at_most=smaller,
                )
            )
        return tuple(found)

    def batch_share(self, layout: HashLayout, batch: int) -> BatchShare | None:
        """Return the share of a batch's look-ups that are distinct rows; None without caches.

        Raises ArtifactError.
        """
        locality = self._read(LOCALITY)
        if locality is None:
            return None
        with self._damage("caches"):
            tokens = self.counted_tokens or 0
            return batch_share(locality.lru, batch, tokens, self._sizes(layout))

    def _sizes(self, layout: HashLayout) -> dict[int, tuple[float, float]]:
        """Return by order the mean rows of a counted head, and of one of the layout."""
        if self.statistics is None:
            return {}
        counted = self.statistics.layout
        found = {}
        for at, order in enumerate(layout.orders):
            if order in counted.orders:
                before = _moduli(counted.layers[0], counted.heads, counted.orders.index(order))
                planned = _moduli(layout.layers[0], layout.heads, at)
                found[order] = (sum(before) / len(before), sum(planned) / len(planned))
        return found

    def _demand(self, order: int, tokens: int) -> Demand:
        if self.statistics is None:
            return Demand(order=order, distinct=float(tokens), error=0.0, bound=True)
        counted = {entry.order: entry for entry in self._read(ORDERS) or ()}
        if order not in counted:
            raise InputError(
                f"{self.path} has no {order}-grams",
                f"it counted orders {', '.join(map(str, counted))}; count with --orders",
            )
        found = counted[order]
        own = Demand(order=order, distinct=found.distinct, error=found.distinct_error)
        curves = {entry.order: entry for entry in self._read(GROWTH) or ()}
        with self._damage("results"):
            return _along(curves.get(order), own, tokens, self.statistics.tokens)

    def _held_out(self, layer: int, order: int, occupied: float) -> HeldOut | None:
        locality = self._read(LOCALITY)
        for entry in () if locality is None else locality.hot:
            if (entry.layer, entry.order) == (layer, order):
                with self._damage("hot rows"):
                    return held_out(entry, occupied)
        return None

    def _read(self, statistic: Statistic[R]) -> R | None:
        """Return a result of the statistics, None if it was not collected. Raises ArtifactError."""
        value = None if self.statistics is None else self.statistics.document.get(statistic.key)
        try:
            return None if value is None else statistic.read(value)
        except ArtifactError as error:
            raise ArtifactError(f"{self.path}: {error.message}", _REMAKE) from None

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Turn the errors that damaged results lead to into ArtifactError."""
        try:
            yield
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise ArtifactError(
                f"{self.path}: its {what} cannot be read: {error!r}", _REMAKE
            ) from None


def _along(curve: OrderGrowth | None, own: Demand, tokens: int, counted: int) -> Demand:
    """The n-grams among `tokens`, where `own` are those of the `counted`.

    The curve is of fewer n-grams than `own`, which it is held to. Where it does not reach, a bound:
    every further token brings a new n-gram.
    """
    if tokens == counted:
        return own
    found = None if curve is None else project(curve, tokens)
    if curve is None or found is None:
        most = min(own.distinct + max(tokens - counted, 0), float(tokens))
        return replace(own, distinct=most, bound=True)
    if tokens < counted:
        distinct = found.distinct * own.distinct / curve.distinct[-1]
        distinct = min(distinct, own.distinct, tokens)
    else:
        distinct = max(found.distinct, own.distinct)
    return replace(own, distinct=distinct, error=found.error)


def _moduli(entry: LayerHash, heads: int, order: int) -> tuple[int, ...]:
    """Return the rows of the heads of an order, by its index, of a layer."""
    return tuple(entry.moduli[order * heads : (order + 1) * heads])


def _check_vocab(statistics: Statistics, vocab: Path | None) -> None:
    """Raise MismatchError for a vocabulary that is not the one the statistics were made with."""
    if vocab is None:
        return
    layout, given = statistics.layout, read_map(vocab)
    if takes_raw_ids(layout.scheme):
        own, other = f"{layout.vocab_size:,} token ids", f"{given.vocab_size:,} token ids"
    else:
        own, other = short(layout.vocab_digest), short(given.digest)
    if own != other:
        raise MismatchError(
            f"{statistics.path} was counted with another vocabulary ({own}) than {vocab} ({other})",
            "leave --vocab out, or count again with it: engram hash-stats --vocab --force",
        )


def read_corpus(
    stats: Path | None, given: Path | None, vocab: Path, tokens: int | None, progress: Progress
) -> PlanCorpus:
    """Return the corpus by its statistics if there are some, else by `tokens` alone.

    `given`: the vocabulary that was asked for; `vocab`: that, or the one of the workspace. Raises
    InputError where there are neither statistics nor tokens, MismatchError for statistics of
    another vocabulary than the one asked for, and what `read_stats` raises.
    """
    if stats is not None and stats.exists():
        statistics = read_stats(stats)
        _check_vocab(statistics, given)
        progress.note(f"statistics: {stats}, {statistics.tokens:,} tokens")
        return PlanCorpus(statistics=statistics, vocab=vocab, tokens=tokens or statistics.tokens)
    if stats is not None and tokens is None:
        raise InputError(
            f"no statistics at {stats}, and no number of tokens",
            "run engram hash-stats CORPUS first, or give --tokens",
        )
    if tokens is None:
        raise InputError("no statistics and no number of tokens", "give --stats or --tokens")
    progress.note(
        "no statistics: every n-gram counts as distinct, an upper bound that is far too high"
    )
    return PlanCorpus(statistics=None, vocab=vocab, tokens=tokens)

"""Measures how the parts of a corpus overlap: the section "sources" of stats.json.

A source is some files, or the documents with a certain label. `overlap` compares what is known of
the n-grams of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.distinct import LEAST_SAMPLE, MOST_SAMPLE, Sampler, table_entries
from engram_cli.stats.sampling.occurrences import Occurrences, drawn_ngrams
from engram_cli.stats.sampling.text_ngrams import (
    BITS,
    EXACT,
    Budget,
    Membership,
    TextNgrams,
    exact_ngrams,
    read_text,
)
from engram_cli.stats.state import (
    State,
    check,
    nested,
    numbered,
    part_of,
    scalar,
    take,
    take_into,
    take_scalar,
    unsound,
)
from engram_cli.stats.statistic import CollectorPlan, Statistic
from engram_cli.stats.statistics.overlap import (
    Floats,
    Overlap,
    SourceNgrams,
    SourcesResult,
    by_ngram,
    by_occurrence,
    overlap_views,
)
from engram_cli.stats.totals import Counts

MOST_SHOWN = 24  # sources, the last of them all others
MOST_SOURCES = 128  # told apart
SAMPLE = 2**14  # n-grams of each order and source, and positions of each source
OTHERS = "(others)"
GROUPINGS = ("file", "folder")
_EXACT_ENTRIES = 2**12  # of a table of all n-grams at first: there are many tables


class TooManySources(InputError):
    """More sources than are told apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourcesPartial:
    """What is known of each source: `texts`, and its `tokens`.

    `by`: what tells sources apart; `size`: n-grams and positions that are sampled.
    """

    layout: HashLayout
    by: str
    size: int
    tokens: Mapping[str, int]
    texts: Mapping[str, TextNgrams]

    def state(self) -> State:
        """Return all of it as named arrays, sources by name."""
        names = sorted(self.tokens)
        return (
            nested(sources=numbered([self.texts[name].state() for name in names]))
            | _named({name: self.tokens[name] for name in names})
            | {"size": scalar(self.size), "by": _raw(self.by)}
        )

    def merge(self, other: SourcesPartial) -> SourcesPartial:
        """Return that of both parts; sources of one name are one.

        Raises MismatchError for another way to tell them apart, TooManySources.
        """
        if other.by != self.by:
            raise MismatchError(
                f"one part of the corpus is grouped by {self.by}, another by {other.by}",
                "count all parts with the same --group-by",
            )
        tokens, texts = dict(self.tokens), dict(self.texts)
        for name, count in other.tokens.items():
            if name not in tokens:
                _check_room(tokens, name, self.by)
            found = other.texts[name]
            # One without a token says nothing: not even that all its n-grams are known.
            texts[name] = texts[name].merge(found) if tokens.get(name, 0) > 0 else found
            tokens[name] = tokens.get(name, 0) + count
        return SourcesPartial(
            layout=self.layout, by=self.by, size=self.size, tokens=tokens, texts=texts
        )

    def result(self, counts: Counts) -> SourcesResult:
        """Return what the sources share; beyond `MOST_SHOWN` the smallest are one, "(others)"."""
        shown, orders = _shown(self.tokens), self.layout.orders
        tokens = [sum(self.tokens[each] for each in members) for members in shown.values()]
        texts = [
            reduce(TextNgrams.merge, [self.texts[each] for each in members])
            for members in shown.values()
        ]
        drawn = [drawn_ngrams(text.occurrences, orders) for text in texts]
        overlap = []
        for index, order in enumerate(orders):
            sources = [
                SourceNgrams(
                    tokens=count, sample=text.best[index], drawn=some[index], seen=text.seen[index]
                )
                for count, text, some in zip(tokens, texts, drawn, strict=True)
            ]
            share, share_error = by_occurrence(sources)
            ngrams, ngrams_error = by_ngram([each.sample for each in sources])
            overlap.append(
                Overlap(
                    order=order,
                    share=_rows(share),
                    share_error=_rows(share_error),
                    ngrams=_rows(ngrams),
                    ngrams_error=_rows(ngrams_error),
                    distinct=tuple(each.sample.distinct for each in sources),
                    distinct_error=tuple(each.sample.distinct_error for each in sources),
                )
            )
        return SourcesResult(names=tuple(shown), tokens=tuple(tokens), overlap=tuple(overlap))


def read_sources(layout: HashLayout, state: State) -> SourcesPartial:
    """Return the partial in a `state`. Raises ArtifactError."""
    if any(name.startswith("samples/") for name in state):
        raise ArtifactError(
            "its sources were counted by an earlier version, which knew less of them",
            "count it again",
        )
    tokens = _names(state)
    return SourcesPartial(
        layout=layout,
        by=_text(state, "by"),
        size=take_scalar(state, "size", LEAST_SAMPLE, MOST_SAMPLE),
        tokens=tokens,
        texts={
            name: read_text(layout, part_of(state, f"sources/{index}"), count, seen=True)
            for index, (name, count) in enumerate(tokens.items())
        },
    )


class _Source:
    """Looks at the tokens of one source."""

    def __init__(self, layout: HashLayout, size: int, exact: Budget | None) -> None:
        self.tokens = 0
        self._samplers = [Sampler(order, layout.filler_id, size) for order in layout.orders]
        self._seen = [Membership() for _ in layout.orders]
        self._occurrences = Occurrences(layout, size)
        self._exact = () if exact is None else exact_ngrams(layout, exact, _EXACT_ENTRIES)

    def push(self, chunk: TokenChunk) -> None:
        """Look at a chunk."""
        self.tokens += len(chunk)
        hashes = np.empty(len(chunk), dtype=np.uint64)
        for sampler, seen in zip(self._samplers, self._seen, strict=True):
            sampler.hash(chunk.window, hashes)
            sampler.push_hashes(hashes, chunk.window)
            seen.add(hashes)
        self._occurrences.push(chunk)
        for table in self._exact:
            table.push(chunk)

    def partial(self) -> TextNgrams:
        """Return what is known; nothing is pushed afterwards."""
        return TextNgrams(
            samples=tuple(sampler.sample() for sampler in self._samplers),
            every=tuple(table.partial() for table in self._exact),
            occurrences=self._occurrences.partial(),
            seen=tuple(self._seen),
        )

    def state(self) -> State:
        """Return the state of samplers, bitmaps and tables."""
        return nested(
            samplers=numbered([sampler.state() for sampler in self._samplers]),
            seen=numbered([{"bits": seen.bits} for seen in self._seen]),
            occurrences=self._occurrences.state(),
            **{EXACT: numbered([table.state() for table in self._exact])},
        )

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        for index, sampler in enumerate(self._samplers):
            sampler.restore(part_of(state, f"samplers/{index}"))
        for index, seen in enumerate(self._seen):
            take_into(part_of(state, f"seen/{index}"), "bits", seen.bits)
        self._occurrences.restore(part_of(state, "occurrences"))
        check(bool(part_of(state, EXACT)) == bool(self._exact), EXACT)
        for index, table in enumerate(self._exact):
            table.restore(part_of(state, f"{EXACT}/{index}"))


class Sources(Collector):
    """Looks at the n-grams of each source."""

    name = "sources"

    def __init__(
        self,
        layout: HashLayout,
        source_of: Mapping[str, str] | None,
        sample_size: int = SAMPLE,
        *,
        by: str = "file",
        exact: Budget | None = None,
    ) -> None:
        """`source_of`: the source of each file by the file's key, None if labels are the sources.

        `by`: what tells them apart, for messages and to merge only what is alike; `exact`: count
        every n-gram, in so much memory.
        """
        self._layout = layout
        self._source_of = source_of
        self._size = sample_size
        self._by = by
        self._exact = exact
        self._sources: dict[str, _Source] = {}
        for name in dict.fromkeys((source_of or {}).values()):
            self._begin(name)

    @property
    def memory(self) -> int:
        """The bytes of all sources; of labels, of as many as there may be."""
        layout, size = self._layout, self._size
        samplers = sum(table_entries(size) * (16 + 4 * order) for order in layout.orders)
        each = samplers + len(layout.orders) * (BITS // 8) + Occurrences(layout, size).memory
        return each * (MOST_SOURCES if self._source_of is None else len(self._sources))

    def push(self, chunk: TokenChunk) -> None:
        """Look at the tokens of each file, or label, for its source. Raises TooManySources."""
        names = chunk.files if self._source_of is not None else chunk.labels
        stops = [at for at, _ in names[1:]] + [len(chunk)]
        for (begin, name), end in zip(names, stops, strict=True):
            source = name if self._source_of is None else self._source_of[name]
            if source not in self._sources:
                self._begin(source)
            if begin < end:
                self._sources[source].push(chunk.part(begin, end))

    def state(self) -> State:
        """Return the state of all sources, their names and tokens."""
        states = [source.state() for source in self._sources.values()]
        return nested(sources=numbered(states)) | _named(self._tokens)

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        self._sources.clear()
        for index, (name, tokens) in enumerate(_names(state).items()):
            self._begin(name)
            self._sources[name].tokens = tokens
            self._sources[name].restore(part_of(state, f"sources/{index}"))

    def partial(self) -> SourcesPartial:
        """Return what is known of all sources."""
        return SourcesPartial(
            layout=self._layout,
            by=self._by,
            size=self._size,
            tokens=self._tokens,
            texts={name: source.partial() for name, source in self._sources.items()},
        )

    @property
    def _tokens(self) -> dict[str, int]:
        return {name: source.tokens for name, source in self._sources.items()}

    def _begin(self, name: str) -> None:
        _check_room(self._sources, name, self._by)
        self._sources[name] = _Source(self._layout, self._size, self._exact)


def _check_room(sources: Mapping[str, object], name: str, by: str) -> None:
    """Raise TooManySources if one more source, `name`, would be too many."""
    if len(sources) >= MOST_SOURCES:
        raise TooManySources(
            f"more than {MOST_SOURCES} sources by {by}, such as {name[:60]!r}",
            "group by what has fewer values, such as --group-by folder",
        )


def _shown(tokens: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the sources of the result by name, and which sources each of them stands for."""
    names = sorted(name for name in tokens if name != OTHERS)
    if len(tokens) > MOST_SHOWN:
        names.sort(key=lambda name: (-tokens[name], name))
        names = sorted(names[: MOST_SHOWN - 1])
    rest = sorted(tokens.keys() - set(names))
    return {name: [name] for name in names} | ({OTHERS: rest} if rest else {})


def _rows(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _named(tokens: Mapping[str, int]) -> State:
    """Return names and tokens of sources as arrays."""
    return {
        "names": _raw(json.dumps(list(tokens))),
        "tokens": np.array(list(tokens.values()), dtype=np.int64),
    }


def _raw(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _text(state: State, name: str) -> str:
    try:
        return take(state, name, np.uint8, (-1,)).tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise unsound(name) from None


def _names(state: State) -> dict[str, int]:
    """Return the sources of a state and their tokens. Raises ArtifactError."""
    try:
        names = json.loads(_text(state, "names"))
    except (ValueError, RecursionError):
        raise unsound("names") from None
    check(isinstance(names, list) and all(isinstance(name, str) for name in names), "names")
    check(len(set(names)) == len(names) <= MOST_SOURCES, "names")
    tokens = take(state, "tokens", np.int64, (len(names),))
    check(bool(np.all(tokens >= 0)), "tokens")
    return dict(zip(names, tokens.tolist(), strict=True))


def group_files(sizes: Mapping[str, int | None], by: str) -> dict[str, str]:
    """Return the source of each file, files by name with their bytes; `by`: "file" or "folder".

    A folder is the first one below what all files have in common, "." for files right there. Beyond
    `MOST_SOURCES` the smallest sources become one, "(others)". Raises InputError for another `by`.
    """
    if by not in GROUPINGS:
        raise InputError(f"cannot group by '{by}'", f"known: {', '.join(GROUPINGS)}")
    common = _common_folders(list(sizes))
    source_of, weights = {}, dict[str, int]()
    for name, size in sizes.items():
        inside = PurePath(name).parts[common:]
        if by == "folder":
            source = inside[0] if len(inside) > 1 else "."
        else:
            source = "/".join(inside) or name
        source_of[name] = source
        weights[source] = weights.get(source, 0) + (size or 0)
    if len(weights) > MOST_SOURCES:
        ranked = sorted(weights, key=lambda source: (-weights[source], source))
        kept = set(ranked[: MOST_SOURCES - 1])
        source_of = {n: s if s in kept else OTHERS for n, s in source_of.items()}
    return source_of


def _common_folders(names: Sequence[str]) -> int:
    """Return how many folders the paths of all files begin with in common."""
    folders = [PurePath(name).parts[:-1] for name in names]
    for depth, parts in enumerate(zip(*folders, strict=False)):
        if len(set(parts)) > 1:
            return depth
    return min(map(len, folders), default=0)


def _collect(plan: CollectorPlan) -> Sources | None:
    if plan.options.group_by is None:
        return None
    return Sources(plan.layout, plan.source_of, by=plan.options.group_by, exact=plan.exact)


SOURCES = Statistic(
    key="sources",
    kind=SourcesResult,
    view=overlap_views,
    collect=_collect,
    read_partial=read_sources,
)

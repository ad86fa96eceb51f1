"""How the parts of a corpus overlap: chunks in, the section "sources" of stats.json out.

Each source has samples of its own, of n-grams and of positions, and a bitmap of all its n-grams;
`stats.overlap` compares them. A source is some files, or the documents with a certain label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import BaseCollector
from engram_cli.stats.distinct import LEAST_SAMPLE, MOST_SAMPLE
from engram_cli.stats.exact import Budget
from engram_cli.stats.occurrences import drawn_ngrams
from engram_cli.stats.overlap import SourceNgrams, by_ngram, by_occurrence
from engram_cli.stats.source import Source, SourcePartial, read_source, source_memory
from engram_cli.stats.state import (
    State,
    check,
    nested,
    numbered,
    part_of,
    scalar,
    take,
    take_scalar,
    unsound,
)
from engram_cli.stats.token_chunk import TokenChunk
from engram_cli.stats.totals import Counts

MOST_SHOWN = 24  # sources, the last of them all others
MOST_SOURCES = 128  # told apart
SAMPLE = 2**14  # n-grams of each order and source, and positions of each source
OTHERS = "(others)"
GROUPINGS = ("file", "folder")


class TooManySources(InputError):
    """More sources than are told apart."""


class Sources(BaseCollector):
    """Samples the n-grams of each source."""

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
        """`source_of`: the source of each file by the file's name, None where labels say it; `by`:
        what they are told apart by, for messages and to merge only what is alike; `exact`: every
        n-gram is counted, in so much memory."""
        self._layout = layout
        self._source_of = source_of
        self._size = sample_size
        self._by = by
        self._exact = exact
        self._sources: dict[str, Source] = {}
        self._absorbed: dict[str, SourcePartial] = {}
        self._tokens: dict[str, int] = {}
        for name in dict.fromkeys((source_of or {}).values()):
            self._begin(name)

    @classmethod
    def blank_for(cls, layout: HashLayout, state: State) -> Sources:
        """One that can absorb a partial. Raises ArtifactError."""
        size = take_scalar(state, "size", LEAST_SAMPLE, MOST_SAMPLE)
        return cls(layout, {}, size, by=_text(state, "by"))

    @property
    def memory(self) -> int:
        """That of all sources; where labels tell them, of as many as there may be."""
        sources = MOST_SOURCES if self._source_of is None else len(self._tokens)
        return sources * source_memory(self._layout, self._size)

    def push(self, chunk: TokenChunk) -> None:
        """Look at the tokens of each file, or label, for its source. Raises TooManySources."""
        names = chunk.files if self._source_of is not None else chunk.labels
        stops = [at for at, _ in names[1:]] + [len(chunk)]
        for (begin, name), end in zip(names, stops, strict=True):
            source = name if self._source_of is None else self._source_of[name]
            if source not in self._sources:
                self._begin(source)
            self._tokens[source] += end - begin
            if begin < end:
                self._sources[source].push(chunk.part(begin, end))

    def state(self) -> State:
        """Of all sources, their names and tokens."""
        each = [self._sources[name].state() for name in self._tokens]
        return nested(sources=numbered(each)) | self._named()

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        self._sources.clear()
        self._tokens.clear()
        for index, (name, tokens) in enumerate(_names(state).items()):
            self._begin(name)
            self._tokens[name] = tokens
            self._sources[name].restore(part_of(state, f"sources/{index}"))

    def partial(self) -> State:
        """What is known of all sources, their names and tokens, by name."""
        self._tokens = dict(sorted(self._tokens.items()))
        sources = numbered([self._found(name).state() for name in self._tokens])
        own = {"size": scalar(self._size), "by": _raw(self._by)}
        return nested(sources=sources) | self._named() | own

    def absorb(self, state: State) -> None:
        """Take in a partial; sources of one name are one. Raises ArtifactError, MismatchError for
        another way to tell them apart, TooManySources."""
        if _text(state, "by") != self._by:
            raise MismatchError(
                f"one part of the corpus is grouped by {self._by}, another by {_text(state, 'by')}",
                "count all parts with the same --group-by",
            )
        if any(name.startswith("samples/") for name in state):
            raise ArtifactError(
                "its sources were counted by an earlier version, which knew less of them",
                "count it again",
            )
        for index, (name, tokens) in enumerate(_names(state).items()):
            found = read_source(part_of(state, f"sources/{index}"), self._layout, tokens)
            known = name in self._absorbed or self._tokens.get(name, 0) > 0
            if name not in self._tokens:
                self._begin(name)
            self._absorbed[name] = self._found(name).merge(found) if known else found
            self._tokens[name] += tokens

    def section(self, counts: Counts) -> dict[str, Any]:
        """Names, tokens, and for each order what each source's n-grams share with the others.

        Beyond `MOST_SHOWN` the sources of the fewest tokens are one, "(others)".
        """
        shown = self._shown()
        tokens = [sum(self._tokens[each] for each in members) for members in shown.values()]
        sources = [
            reduce(SourcePartial.merge, [self._found(each) for each in members])
            for members in shown.values()
        ]
        drawn = [drawn_ngrams(source.occurrences, self._layout.orders) for source in sources]
        overlap = []
        for index, order in enumerate(self._layout.orders):
            own = [
                SourceNgrams(
                    tokens=count,
                    sample=source.best[index],
                    drawn=some[index],
                    seen=source.seen[index],
                )
                for count, source, some in zip(tokens, sources, drawn, strict=True)
            ]
            share, share_error = by_occurrence(own)
            ngrams, ngrams_error = by_ngram([each.sample for each in own])
            overlap.append(
                {
                    "order": order,
                    "share": share.tolist(),
                    "share_error": share_error.tolist(),
                    "ngrams": ngrams.tolist(),
                    "ngrams_error": ngrams_error.tolist(),
                    "distinct": [each.sample.distinct for each in own],
                    "distinct_error": [each.sample.distinct_error for each in own],
                }
            )
        return {"names": list(shown), "tokens": tokens, "overlap": overlap}

    def _shown(self) -> dict[str, list[str]]:
        """The sources to tell about by name, and which of ours each of them is."""
        names = sorted(self._tokens)
        if len(names) > MOST_SHOWN:
            named = [name for name in names if name != OTHERS]
            named.sort(key=lambda name: (-self._tokens[name], name))
            names = sorted(named[: MOST_SHOWN - 1])
        shown = {name: [name] for name in names if name != OTHERS}
        rest = sorted(self._tokens.keys() - shown.keys())
        return shown | ({OTHERS: rest} if rest else {})

    def _begin(self, name: str) -> None:
        if len(self._tokens) >= MOST_SOURCES:
            raise TooManySources(
                f"more than {MOST_SOURCES} sources by {self._by}, such as {name[:60]!r}",
                "group by what has fewer values, such as --group-by folder",
            )
        self._tokens[name] = 0
        self._sources[name] = Source(self._layout, self._size, self._exact)

    def _found(self, name: str) -> SourcePartial:
        return self._absorbed.get(name) or self._sources[name].partial()

    def _named(self) -> State:
        """The names and tokens of the sources."""
        return {
            "names": _raw(json.dumps(list(self._tokens))),
            "tokens": np.array(list(self._tokens.values()), dtype=np.int64),
        }


def _raw(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _text(state: State, name: str) -> str:
    try:
        return take(state, name, np.uint8, (-1,)).tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise unsound(name) from None


def _names(state: State) -> dict[str, int]:
    """The sources of a state and their tokens. Raises ArtifactError."""
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
    """The source of each file, files by name with their bytes in; `by`: "file" or "folder".

    A folder is the first one below what all files have in common, "." for files right there. Beyond
    `MOST_SOURCES` the smallest sources become one, "(others)". Raises InputError for another `by`.
    """
    if by not in GROUPINGS:
        raise InputError(f"cannot group by '{by}'", f"known: {', '.join(GROUPINGS)}")
    common = _common_folder(list(sizes))
    source_of, weights = {}, dict[str, int]()
    for name, size in sizes.items():
        inside = PurePath(name).parts[len(common) :]
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


def _common_folder(names: Sequence[str]) -> tuple[str, ...]:
    """The parts of the path that the folders of all files begin with."""
    folders = [PurePath(name).parts[:-1] for name in names]
    common = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return tuple(common)

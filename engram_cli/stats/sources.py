"""How the parts of a corpus overlap: passages in, the section "sources" of stats.json out.

Each source has its own bottom-k sample of n-grams. Below the lower threshold of two sources both
samples are complete there, so what they share is counted, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Looker
from engram_cli.stats.counters import Counts
from engram_cli.stats.distinct import NgramSample, Sampler, lowest, sampler_bytes
from engram_cli.stats.passage import Passage
from engram_cli.stats.state import State, nested, numbered, part_of, take

MOST_SOURCES = 24
SAMPLE = 2**15  # n-grams of each order and source
OTHERS = "(others)"
_GROUPINGS = ("file", "folder")


class Sources(Looker):
    """Samples the n-grams of each source."""

    name = "sources"

    def __init__(
        self, layout: HashLayout, source_of: Mapping[str, str], sample_size: int = SAMPLE
    ) -> None:
        """`source_of`: the source of each file by the file's name."""
        self._source_of = source_of
        self._size = sample_size
        self.names = tuple(dict.fromkeys(source_of.values()))
        self._orders = layout.orders
        self._samplers = {
            name: [Sampler(order, layout.filler_id, sample_size) for order in layout.orders]
            for name in self.names
        }
        self._tokens = dict.fromkeys(self.names, 0)

    @property
    def memory(self) -> int:
        """The samplers of all sources."""
        return len(self.names) * sum(sampler_bytes(order, self._size) for order in self._orders)

    @property
    def cost(self) -> int:
        """That of drawing the samples."""
        return 3 * len(self._orders)

    def push(self, passage: Passage) -> None:
        """Sample each file's tokens for its source."""
        stops = [at for at, _ in passage.files[1:]] + [len(passage)]
        for (begin, name), end in zip(passage.files, stops, strict=True):
            source = self._source_of[name]
            self._tokens[source] += end - begin
            for sampler in self._samplers[source]:
                sampler.push(passage.window.part(begin, end))

    def state(self) -> State:
        """Of the samplers of all sources, and their tokens."""
        samplers = numbered([sampler.state() for sampler in self._all_samplers()])
        tokens = np.array(list(self._tokens.values()), dtype=np.int64)
        return nested(samplers=samplers) | {"tokens": tokens}

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        for index, sampler in enumerate(self._all_samplers()):
            sampler.restore(part_of(state, f"samplers/{index}"))
        tokens = take(state, "tokens", np.int64, (len(self.names),))
        self._tokens = dict(zip(self.names, tokens.tolist(), strict=True))

    def _all_samplers(self) -> list[Sampler]:
        return [sampler for name in self.names for sampler in self._samplers[name]]

    def section(self, counts: Counts) -> dict[str, Any]:
        """Names, tokens, and for each order what each source's n-grams share with the others."""
        overlap = []
        for index, order in enumerate(self._orders):
            samples = [self._samplers[name][index].sample() for name in self.names]
            by_use, by_ngram = overlaps(samples)
            overlap.append(
                {
                    "order": order,
                    "share": by_use.tolist(),
                    "ngrams": by_ngram.tolist(),
                    "distinct": [sample.distinct for sample in samples],
                }
            )
        tokens = [self._tokens[name] for name in self.names]
        return {"names": list(self.names), "tokens": tokens, "overlap": overlap}


def overlaps(samples: Sequence[NgramSample]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares [G, G] of the occurrences, and of the n-grams, of source i that source j has too."""
    size = len(samples)
    by_use, by_ngram = np.eye(size), np.eye(size)
    for i, one in enumerate(samples):
        for j, two in enumerate(samples[:i]):
            threshold = min(one.threshold, two.threshold)
            a, b = _below(one, threshold), _below(two, threshold)
            _, in_a, in_b = np.intersect1d(
                a.hashes, b.hashes, assume_unique=True, return_indices=True
            )
            for own, at, row, column in ((a, in_a, i, j), (b, in_b, j, i)):
                by_ngram[row, column] = len(at) / max(len(own.hashes), 1)
                uses = max(float(own.counts.sum()), 1.0)
                by_use[row, column] = float(own.counts[at].sum()) / uses
    return by_use, by_ngram


def group_files(sizes: Mapping[str, int | None], by: str) -> dict[str, str]:
    """The source of each file, files by name with their bytes in; `by`: "file" or "folder".

    A folder is the first one below what all files have in common, "." for files right there. Beyond
    `MOST_SOURCES` the smallest sources become one, "(others)". Raises InputError for another `by`.
    """
    if by not in _GROUPINGS:
        raise InputError(f"cannot group by '{by}'", f"known: {', '.join(_GROUPINGS)}")
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


def _below(sample: NgramSample, threshold: int) -> NgramSample:
    """The n-grams of a sample whose hash is below `threshold`."""
    return lowest(sample.order, sample.size, threshold, sample.hashes, sample.counts, sample.tokens)

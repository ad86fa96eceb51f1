"""Holds what counting a corpus gives, row hits and n-gram samples, and merges two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.registry import LazyModule
from engram_cli.rows.source import FULL as FULL
from engram_cli.stats.sampling.distinct import NgramSample

kernels = LazyModule("engram_cli.stats.counting.kernels")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """The counts of a corpus.

    `hits`: layer -> uint32[rows], how often each global row was looked up; `samples`: one for
    each order; `joined`: documents were hashed as one stream.
    """

    layout: HashLayout
    tokens: int
    documents: int
    joined: bool
    hits: Mapping[int, NDArray[np.uint32]]
    samples: tuple[NgramSample, ...]

    def merge(self, other: Counts) -> Counts:
        """Return the counts of both corpora. Raises MismatchError for another layout."""
        if self.layout.fingerprint != other.layout.fingerprint or self.joined != other.joined:
            raise MismatchError(
                "counts of two layouts do not merge",
                "count both corpora with the same vocabulary, geometry and --join-documents",
            )
        hits = {}
        for layer, own in self.hits.items():
            hits[layer] = own.copy()
            kernels.add_hits(hits[layer], np.require(other.hits[layer], requirements=("C", "W")))
        return Counts(
            layout=self.layout,
            tokens=self.tokens + other.tokens,
            documents=self.documents + other.documents,
            joined=self.joined,
            hits=hits,
            samples=tuple(
                one.merge(two) for one, two in zip(self.samples, other.samples, strict=True)
            ),
        )

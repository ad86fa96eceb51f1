"""Whatever counts can be broken off anywhere and gone on with: the figures are the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import layout_of, section, zipf_documents

from engram_cli.corpus.base import ReadPosition, TokenBlock
from engram_cli.errors import ArtifactError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from engram_cli.stats.counting.count import CorpusCounter
from engram_cli.stats.counting.holdout import Holdout
from engram_cli.stats.sampling.occurrences import Occurrences
from engram_cli.stats.sampling.text_ngrams import Budget, ExactNgrams, exact_ngrams
from engram_cli.stats.state import State
from engram_cli.stats.statistics.compare import Uncompressed
from engram_cli.stats.statistics.growth import Growth
from engram_cli.stats.statistics.locality import Locality
from engram_cli.stats.statistics.sources import Sources
from engram_cli.stats.totals import Counts

PLAIN = layout_of(moduli=(1009, 1013, 10007, 10009), heads=2, layers=(1, 4), eos_id=7)
LAYOUT = replace(PLAIN, vocab_digest="sha256:0", lookup=np.arange(50, dtype=np.int32))
FILES = [zipf_documents(seed=seed, count=40, length=70, size=50) for seed in range(6)]
SIZE = 700  # tokens of a block


class Run:
    """A counter with one kind of collector, over files of documents."""

    def __init__(self, kind: str, layout: HashLayout = LAYOUT) -> None:
        self.holdout = Holdout(0.3, kept_tokens=900) if kind == "holdout" else None
        self.collectors = KINDS[kind](layout, self.holdout)
        self.counter = CorpusCounter(
            layout,
            sample_size=300,
            threads=2,
            collectors=self.collectors,
            holdout=self.holdout,
        )

    def count(self, begin: int = 0, end: int | None = None) -> str:
        """Count some blocks; all that was found by then."""
        counts = self.counter.count(blocks(begin, end))
        return json.dumps([figures(counts), *(found(each, counts) for each in self.collectors)])


KINDS: dict[str, Callable[[HashLayout, Holdout | None], list[Collector]]] = {
    "none": lambda layout, holdout: [],
    "growth": lambda layout, holdout: [Growth(layout, 400)],
    "locality": lambda layout, holdout: [Locality(layout, sampled_rows=2000)],
    "holdout": lambda layout, holdout: [Locality(layout, holdout)],
    "exact": lambda layout, holdout: list(exact_ngrams(layout, Budget(None))),
    "uncompressed": lambda layout, holdout: [Uncompressed(layout, 200)],
    "exact uncompressed": lambda layout, holdout: [Uncompressed(layout, 200, Budget(None))],
    "occurrences": lambda layout, holdout: [Occurrences(layout, 300)],
    "sources": lambda layout, holdout: [
        Sources(layout, {str(index): f"s{index % 2}" for index in range(len(FILES))}, 100)
    ],
    "exact sources": lambda layout, holdout: [
        Sources(
            layout,
            {str(index): f"s{index % 2}" for index in range(len(FILES))},
            100,
            exact=Budget(None),
        )
    ],
}


def blocks(begin: int, end: int | None) -> Generator[TokenBlock, None, None]:
    """The blocks begin..end-1 of all files."""
    made = []
    for name, documents in enumerate(FILES):
        ids = np.concatenate(documents)
        starts = np.zeros(len(ids), dtype=bool)
        starts[np.cumsum([0, *map(len, documents[:-1])])] = True
        made += [
            TokenBlock(
                ids=ids[at : at + SIZE],
                starts=starts[at : at + SIZE],
                size=SIZE,
                locate=str,
                files=((0, str(name)),),
            )
            for at in range(0, len(ids), SIZE)
        ]
    yield from made[begin:end]


BLOCKS = len(list(blocks(0, None)))


def figures(counts: Counts) -> list[Any]:
    """Counts as JSON."""
    hits = [hits.tolist() for hits in counts.hits.values()]
    return [counts.tokens, counts.documents, hits, *map(listed, counts.samples)]


def listed(sample: Any) -> list[Any]:
    arrays = (sample.hashes, sample.counts, sample.tokens)
    return [sample.threshold, *(array.tolist() for array in arrays)]


def found(collector: Collector, counts: Counts) -> Any:
    """What a collector found, as JSON."""
    if isinstance(collector, ExactNgrams):
        return listed(collector.partial().sample)
    return section(collector, counts)


def through_a_file(state: State, folder: Path) -> State:
    """A state as it comes back from a checkpoint."""
    kept = Checkpoint(
        read_position=ReadPosition(file=3, open=True), size=5, tokens=6, encoder=None, state=state
    )
    write_checkpoint(folder, "request", kept)
    read = read_checkpoint(folder, "request")
    assert read is not None
    assert (read.read_position, read.size, read.tokens, read.encoder) == (
        kept.read_position,
        5,
        6,
        None,
    )
    return read.state


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    """What runs that were not broken off find."""
    return {kind: Run(kind).count() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, BLOCKS - 1), min_size=1, max_size=3, unique=True))
def test_a_run_broken_off_anywhere_finds_the_same(
    kind: str, cuts: list[int], whole: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept") / "folder"
    run, at = Run(kind), 0
    for cut in sorted(cuts):
        run.counter.count(blocks(at, cut))
        state = through_a_file(run.counter.state(), folder)
        run, at = Run(kind), cut
        run.counter.restore(state)
    assert run.count(at) == whole[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_is_missed_and_a_wrong_one_refused(kind: str) -> None:
    run = Run(kind)
    run.counter.count(blocks(0, 9))
    state = {name: array.copy() for name, array in run.counter.state().items()}
    for name, array in state.items():
        without = {key: value for key, value in state.items() if key != name}
        for broken in (without, state | {name: array.astype(np.float64)}):
            with pytest.raises(ArtifactError, match="not what counting leaves"):
                Run(kind).counter.restore(broken)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("none", "counter/samplers/0/hashes", np.full(3, 5, np.uint64)),
        ("none", "counter/samplers/0/highest", np.array([-1])),
        ("none", "counter/hits/1", np.zeros(7, np.uint32)),
        ("none", "feed/history", np.array([3, 50], np.int32)),
        ("none", "feed/carry", np.array([3])),
        ("growth", "counter/collectors/0/ngrams/1/hashes", np.zeros(2, np.uint64)),
        ("locality", "counter/collectors/0/0/used", np.array([4, 9, 4], np.uint32)),
        ("locality", "counter/collectors/0/0/used", np.array([2**31], np.uint32)),
        ("exact", "counter/collectors/0/slots", np.ones(2**21, np.uint64)),
        ("exact", "counter/collectors/0/slots", np.zeros(2**20 + 2, np.uint64)),
        ("holdout", "feed/holdout/held/lengths", np.array([2**40])),
    ],
)
def test_what_would_lead_a_kernel_astray_is_refused(kind: str, name: str, value: Any) -> None:
    run = Run(kind)
    run.counter.count(blocks(0, 9))
    state = dict(run.counter.state())
    assert name in state
    with pytest.raises(ArtifactError):
        Run(kind).counter.restore(state | {name: value})

"""Partials: any split at the bounds of partitions, any order and grouping, gives the whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import layout_of, plain, zipf_documents

from engram_cli.corpus.base import TokenBlock
from engram_cli.errors import ArtifactError, EngramError, MismatchError
from engram_cli.stats import partial
from engram_cli.stats.collector import Collector, CollectorPartial
from engram_cli.stats.collector_set import read_collected
from engram_cli.stats.counting.count import CorpusCounter
from engram_cli.stats.counting.holdout import Holdout
from engram_cli.stats.partial import Partial, read_partial, read_partials, write_partials
from engram_cli.stats.sampling.occurrences import Occurrences
from engram_cli.stats.sampling.text_ngrams import AllNgrams, Budget, exact_ngrams
from engram_cli.stats.state import State
from engram_cli.stats.statistics.compare import Uncompressed
from engram_cli.stats.statistics.growth import Growth
from engram_cli.stats.statistics.locality import Locality
from engram_cli.stats.statistics.sources import Sources, TooManySources

PLAIN = layout_of(moduli=(1009, 1013, 10007, 10009), heads=2, layers=(1, 4), eos_id=7)
LAYOUT = replace(PLAIN, vocab_digest="sha256:0", lookup=np.arange(50, dtype=np.int32))
PARTS = 6
FILES = [zipf_documents(seed=seed, count=12, length=70, size=50) for seed in range(PARTS)]
SOURCE_OF = {str(index): f"s{index % 3}" for index in range(PARTS)}

KINDS: dict[str, Callable[[Holdout | None], Sequence[Collector]]] = {
    "none": lambda holdout: [],
    "growth": lambda holdout: [Growth(LAYOUT, 300)],
    "locality": lambda holdout: [Locality(LAYOUT)],
    "holdout": lambda holdout: [Locality(LAYOUT, holdout)],
    "exact": lambda holdout: exact_ngrams(LAYOUT, Budget(None)),
    "uncompressed": lambda holdout: [Uncompressed(LAYOUT, 100)],
    "exact uncompressed": lambda holdout: [Uncompressed(LAYOUT, 100, Budget(None))],
    "occurrences": lambda holdout: [Occurrences(LAYOUT, 100)],
    "sources": lambda holdout: [Sources(LAYOUT, SOURCE_OF, 100, by="folder")],
    "exact sources": lambda holdout: [
        Sources(LAYOUT, SOURCE_OF, 100, by="folder", exact=Budget(None))
    ],
    "labels": lambda holdout: [Sources(LAYOUT, None, 100, by="language")],
}


def blocks(parts: Sequence[int], size: int = 400) -> Generator[TokenBlock, None, None]:
    """The files as partitions, in blocks of `size` tokens."""
    for part in parts:
        documents = FILES[part]
        ids = np.concatenate(documents)
        begins = np.cumsum([0, *map(len, documents[:-1])])
        starts = np.zeros(len(ids), dtype=bool)
        starts[begins] = True
        labels = [("even", "odd", "none")[index % 3] for index in range(len(documents))]
        for at in range(0, len(ids), size):
            first = int(np.searchsorted(begins, at, side="right")) - 1
            inside = [(max(int(b) - at, 0), n) for b, n in zip(begins, labels, strict=True)][first:]
            yield TokenBlock(
                ids=ids[at : at + size],
                starts=starts[at : at + size],
                size=size,
                locate=str,
                files=((0, str(part)),),
                labels=tuple(pair for pair in inside if pair[0] < len(ids[at : at + size])),
                partition=part,
            )


def counted(
    kind: str, parts: Sequence[int], *, joined: bool = False, size: int = 400, threads: int = 1
) -> Partial:
    """What some of the files leave behind."""
    holdout = Holdout(0.3, kept_tokens=200) if kind == "holdout" else None
    collectors = KINDS[kind](holdout)
    counter = CorpusCounter(
        LAYOUT,
        sample_size=100,
        threads=threads,
        join_documents=joined,
        collectors=collectors,
        holdout=holdout,
    )
    counts = counter.count(blocks(parts, size))
    return Partial(counts=counts, collected={each.name: each.partial() for each in collectors})


def same(one: State, two: State) -> bool:
    """Whether two states are equal to the bit."""
    return one.keys() == two.keys() and all(
        array.dtype == two[name].dtype and np.array_equal(array, two[name])
        for name, array in one.items()
    )


def results(partial: Partial) -> dict[str, Any]:
    """What the collectors give, and all n-grams, which have no result of their own."""
    every = {
        name: [each.sample.hashes.tolist(), each.sample.counts.tolist()]
        for name, each in partial.collected.items()
        if isinstance(each, AllNgrams)
    }
    return every | {name: plain(result) for name, result in partial.results().items()}


def merged(name: str, *states: State) -> CollectorPartial:
    """Partials that come from files, as one."""
    return reduce(lambda one, two: one.merge(two), (one_read(name, state) for state in states))


def one_read(name: str, state: State) -> CollectorPartial:
    return read_collected(LAYOUT, {name: state})[name]


def doubled(state: State) -> Partial:
    """A partial from its arrays, merged with itself."""
    partial = read_partial(LAYOUT, state)
    return partial.merge(partial)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(
    order=st.permutations(range(PARTS)),
    cuts=st.sets(st.integers(1, PARTS - 1), min_size=1, max_size=3),
    joined=st.booleans(),
    data=st.data(),
)
def test_any_split_order_and_tree_gives_the_whole(
    kind: str, order: list[int], cuts: set[int], joined: bool, data: st.DataObject
) -> None:
    whole = counted(kind, range(PARTS), joined=joined)
    bounds = [0, *sorted(cuts), PARTS]
    partials = [
        counted(kind, order[begin:end], joined=joined, size=333, threads=2)
        for begin, end in itertools.pairwise(bounds)
    ]
    while len(partials) > 1:  # a tree of any shape, either side first
        one = partials.pop(data.draw(st.integers(0, len(partials) - 1)))
        two = partials.pop(data.draw(st.integers(0, len(partials) - 1)))
        travelled = read_partial(LAYOUT, two.state())
        partials.append(one.merge(travelled))
    assert same(partials[0].state(), whole.state())
    assert results(partials[0]) == results(read_partial(LAYOUT, whole.state())) == results(whole)


def test_partitions_decide_and_nothing_else() -> None:
    """One partition is not two: the caches and the look-back of joined documents tell."""
    apart = counted("locality", range(PARTS), joined=True)
    one = [replace(block, partition=0) for block in blocks(range(PARTS))]
    collector = Locality(LAYOUT)
    counter = CorpusCounter(LAYOUT, sample_size=100, join_documents=True, collectors=[collector])
    counts = counter.count(block for block in one)
    assert counts.tokens == apart.counts.tokens
    assert not np.array_equal(counts.hits[1], apart.counts.hits[1])
    assert not same(collector.partial().state(), apart.collected["locality"].state())


def test_what_one_part_lacks_is_left_out() -> None:
    growth = counted("growth", [0, 1])
    sources = counted("sources", [2])
    both = Partial(counts=growth.counts, collected={**growth.collected, **sources.collected}).merge(
        counted("growth", [3])
    )
    assert list(both.collected) == ["growth"]


def test_a_file_counted_twice_is_the_same_in_either_order() -> None:
    """Segments with equal keys: of another state of the file, or of the file itself."""
    for kind in ("holdout", "locality", "growth"):
        name = "growth" if kind == "growth" else "locality"
        one, two = (counted(kind, parts).collected[name] for parts in ([0, 1], [1, 2]))
        assert same(one.merge(two).state(), two.merge(one).state())
        assert same(one.merge(two).merge(two).state(), one.merge(two.merge(two)).state())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_they_come_back_from_a_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "LONG_FROM", 1000)
    collected = counted(kind, range(PARTS)).collected
    states = {name: partial.state() for name, partial in collected.items()}
    about, digests = json.loads(json.dumps(write_partials(tmp_path, states)))
    found = read_partials(tmp_path, about)
    assert found.keys() == states.keys()
    assert all(same(found[name], state) for name, state in states.items())
    again = tmp_path / "again"
    again.mkdir()
    assert write_partials(again, states) == (about, digests)
    assert len(digests) == len(about["long"])
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        if again not in file.parents:
            assert (again / file.relative_to(tmp_path)).read_bytes() == file.read_bytes()


def test_damaged_folders_are_told(tmp_path: Path) -> None:
    states = {"growth": counted("growth", [0]).collected["growth"].state()}
    about: dict[str, Any] = write_partials(tmp_path, states)[0]
    path = tmp_path / "partials.safetensors"
    raw = path.read_bytes()
    assert read_partials(tmp_path, None) == read_partials(tmp_path, {"of": []}) == {}
    for wrong in (
        [],
        {},
        about | {"of": "growth"},
        about | {"of": [1]},
        about | {"long": {"growth/x": ["object", 3]}},
        about | {"long": {"growth/x": ["uint8", -3]}},
        about | {"long": {"growth/x": ["uint8", 3]}},
    ):
        with pytest.raises(ArtifactError):
            read_partials(tmp_path, wrong)
    for damage in (raw[:-1], raw[:40], b"", raw[:-1] + bytes([raw[-1] ^ 1])):
        path.write_bytes(damage)
        with pytest.raises(ArtifactError, match=r"partials\.safetensors"):
            read_partials(tmp_path, about)
    path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_partials(tmp_path, about)


@pytest.mark.parametrize("kind", ["sources", "uncompressed"])
def test_partials_of_earlier_versions_are_named(kind: str) -> None:
    """They had neither positions nor bitmaps, and other names for the samples of sources."""
    state = counted(kind, [0, 1]).collected[kind].state()
    earlier = {
        name.replace("sources/0/samples", "samples/0"): array
        for name, array in state.items()
        if "occurrences" not in name and "seen" not in name
    }
    with pytest.raises(ArtifactError, match="counted by an earlier version"):
        merged(kind, state, earlier)


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_is_missed_and_a_wrong_one_refused(kind: str) -> None:
    state = counted(kind, [0, 1]).state()
    doubled(state)
    for name, array in state.items():
        without = {key: value for key, value in state.items() if key != name}
        for broken in (without, state | {name: array.astype(np.complex128)}):
            with pytest.raises(EngramError):
                doubled(broken)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("none", "hits/1", np.zeros(5, np.uint32)),
        ("none", "samples/0/size", np.array([2**40])),
        ("none", "samples/1/tokens", np.full(300, 99, np.int32)),
        ("growth", "collected/growth/ngrams/0/size", np.array([2**40])),
        ("growth", "collected/growth/ngrams/0/hashes", np.full(300, 7, np.uint64)),
        ("growth", "collected/growth/tokens", np.full(4096, -1)),
        ("locality", "collected/locality/columns/0/lru/found", np.array([[-1]])),
        ("holdout", "collected/locality/holdout/share", np.array([np.nan])),
        ("holdout", "collected/locality/holdout/lengths", np.array([2**40])),
        ("sources", "collected/sources/names", np.frombuffer(b'["a","a"]', np.uint8)),
        ("sources", "collected/sources/names", np.frombuffer(b"[[]", np.uint8)),
        ("sources", "collected/sources/tokens", np.array([-1, 1, 1])),
        ("exact", "collected/exact-2/tokens", np.zeros(4, np.int32)),
    ],
)
def test_what_would_lead_astray_is_refused(kind: str, name: str, value: Any) -> None:
    state = counted(kind, range(PARTS)).state()
    assert name in state
    if name.endswith("found"):
        value = np.full_like(state[name], -1)
    with pytest.raises(ArtifactError):
        doubled(state | {name: value})


def test_what_was_counted_otherwise_does_not_belong() -> None:
    parts = [counted("holdout", [0]), counted("locality", [1])]
    with pytest.raises(MismatchError, match="held-out look-ups"):
        parts[0].merge(parts[1])
    growth = [Growth(LAYOUT, size).partial().state() for size in (100, 200)]
    with pytest.raises(MismatchError, match="of 100 and of 200"):
        merged("growth", *growth)
    sources = [Sources(LAYOUT, SOURCE_OF, by=by).partial().state() for by in ("file", "folder")]
    with pytest.raises(MismatchError, match="grouped by file, another by folder"):
        merged("sources", *sources)
    shares = [Locality(LAYOUT, Holdout(share)).partial().state() for share in (0.1, 0.2)]
    with pytest.raises(MismatchError, match=r"shares of 0\.1 and of 0\.2"):
        merged("locality", *shares)
    with pytest.raises(ArtifactError, match="'later' is no partial"):
        one_read("later", {})


def test_sources_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_cli.stats.statistics import sources as module

    monkeypatch.setattr(module, "MOST_SOURCES", 4)
    names = [{str(i): f"{letter}{i}" for i in range(3)} for letter in "ab"]
    one, two = (Sources(LAYOUT, each, 16).partial().state() for each in names)
    with pytest.raises(TooManySources, match="more than 4 sources by file, such as 'b1'"):
        merged("sources", one, two)

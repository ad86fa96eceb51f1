"""Tasks of any size, merged in any tree, give what the local engine counts: without a cluster."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_tokenizers import PROSE
from stats.truth import layout_of

from engram_cli import errors
from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.partitions import plan_partitions
from engram_cli.corpus.sources import find_sources
from engram_cli.engines import local, tasks
from engram_cli.engines.ray_counting import FAN_IN, _Tree
from engram_cli.engines.tasks import Shared, count_part, merge_parts, reading_of, task_bounds
from engram_cli.engines.work import ENGINES, Running, Work
from engram_cli.errors import CorpusError, EngramError, MismatchError
from engram_cli.progress import SILENT
from engram_cli.stats.collector_set import CollectorOptions, sources_of
from engram_cli.stats.memory import plan_memory
from engram_cli.stats.state import State
from engram_cli.version import __version__
from engram_cli.vocab.tokenizer import load_tokenizer

TEXTS = [f"{at} " + PROSE[at % len(PROSE)] * (6 + at % 5) for at in range(10)]
COLLECTORS = CollectorOptions(exact=True, group_by="file", locality=True, holdout=0.2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Work:
    """Ten files of text in as many partitions, or fewer."""
    folder = tmp_path_factory.mktemp("corpus")
    for at, text in enumerate(TEXTS):
        (folder / f"{at:02}.txt").write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(tokenizer_file)
    options = CorpusOptions()
    plan = plan_partitions(find_sources([folder], options).files, options, 1024)
    return Work(
        plan=plan,
        options=options,
        layout=layout_of(
            moduli=(1009, 1013, 1019, 1021), heads=2, size=max(tokenizer.spellings()) + 1
        ),
        tokenizer=tokenizer,
        collector_options=COLLECTORS,
        source_of=sources_of(plan.files, "file"),
        sample_size=64,
        join_documents=True,
    )


def shared_of(work: Work) -> Shared:
    assert work.tokenizer is not None
    return Shared(
        reading=reading_of(work.layout, work.options, work.tokenizer, "auto", 1),
        collector_options=work.collector_options,
        source_of=work.source_of,
        sample_size=work.sample_size,
        join_documents=work.join_documents,
        memory=10**9,
    )


@pytest.fixture(scope="module")
def whole(work: Work, tmp_path_factory: pytest.TempPathFactory) -> State:
    """What the local engine counts."""
    running = Running(
        encoder="auto",
        threads=2,
        memory=plan_memory(work.layout, 64, 2, text=True),
        checkpoints=tmp_path_factory.mktemp("kept"),
        fingerprint=None,
    )
    counted = ENGINES.load("local")(work, running, SILENT)
    assert ENGINES.load("local") is local.count
    return counted.partial.state()


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.integers(1, 6), max_size=6), st.randoms(use_true_random=False))
def test_any_tasks_in_any_tree(work: Work, whole: State, cuts: set[int], draw) -> None:
    shared = pickle.loads(pickle.dumps(shared_of(work)))
    bounds = [0, *sorted(cuts & set(range(1, len(work.plan)))), len(work.plan)]
    states = []
    for begin, end in pairwise(bounds):
        report, state = count_part(shared, work.plan.part(begin, end))
        assert report.error is None
        assert report.size == work.plan.part(begin, end).size
        states.append(state)
    while len(states) > 1:
        draw.shuffle(states)
        count = draw.randint(2, FAN_IN)
        report, state = merge_parts(work.layout, *states[:count])
        assert report.error is None
        states[:count] = [state]
    assert states[0].keys() == whole.keys()
    assert all(np.array_equal(array, whole[name]) for name, array in states[0].items())


def test_errors_travel_as_values(work: Work, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\xff")
    plan = plan_partitions(find_sources([tmp_path], work.options).files, work.options)
    report, state = pickle.loads(pickle.dumps(count_part(shared_of(work), plan)))
    assert isinstance(report.error, CorpusError)
    assert report.error.message == f"{tmp_path}/a.txt, line 1: byte 4 is not UTF-8 (0xFF)"
    assert state == {}
    report, state = merge_parts(work.layout, {}, {})
    assert isinstance(report.error, EngramError)
    assert state == {}


def test_another_version_is_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = shared_of(work)
    monkeypatch.setattr(tasks, "__version__", "0.0.7")
    report, _ = count_part(shared, work.plan)
    assert isinstance(report.error, MismatchError)
    assert report.error.message == f"a worker has engram 0.0.7, this is {__version__}"


def test_every_error_travels() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    for kind in kinds:
        made = kind("what", "how to mend")
        found = pickle.loads(pickle.dumps(made))
        assert (type(found), str(found)) == (kind, str(made))
    assert len(kinds) > 10


@example([1, 0], 1)  # nothing is left for the last one
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_tasks_share_the_work_evenly(sizes: list[int], most: int) -> None:
    bounds = task_bounds(sizes, most)
    assert 1 <= len(bounds) <= most
    assert (bounds[0][0], bounds[-1][1]) == (0, len(sizes))
    assert all(one[1] == two[0] for one, two in pairwise(bounds))
    for begin, end in bounds:
        assert begin < end
        assert sum(sizes[begin : end - 1]) <= sum(sizes) / most + 1


@given(st.integers(1, 100))
def test_a_tree_merges_all_once(leaves: int) -> None:
    tree, merges, done = _Tree(), 0, 0
    waiting = [({leaf}, 0) for leaf in range(leaves)]
    while True:
        while waiting:
            state, level = waiting.pop(0)
            ready = tree.take(state, level)
            if ready is not None:
                waiting.append((set().union(*ready), level + 1))
                assert sum(map(len, ready)) == len(waiting[-1][0])
                merges, done = merges + 1, max(done, level + 1)
        rest = tree.rest()
        if len(rest) == 1:
            break
        waiting.append((set().union(*rest), len(tree.levels)))
    assert rest[0] == set(range(leaves))
    assert done <= 4

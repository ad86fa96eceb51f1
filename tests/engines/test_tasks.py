"""Tasks of any size merge in any tree; errors and versions travel; ranges cover their rows."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from engines.fake_ray import InProcess
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from table.filled import fill_spec, random_vectors, write_corpus
from table.plain import united
from table.tables import mapped_layout

from engram_cli import errors
from engram_cli.corpus.base import CorpusFile, ReadPosition
from engram_cli.corpus.partitions import Plan
from engram_cli.engines import ray
from engram_cli.engines.base import Task, portable
from engram_cli.engines.corpus_tokens import _partition_after
from engram_cli.engines.counting import CountJob, Work
from engram_cli.engines.filling import TaskMemory, _cut, _runs
from engram_cli.engines.ray import FAN_IN, task_bounds
from engram_cli.errors import InputError, MismatchError
from engram_cli.progress import SILENT
from engram_cli.table.inits.corpus.pairs import span_pairs, token_spans, write_pairs
from engram_cli.version import __version__


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.integers(1, 6), max_size=6), st.randoms(use_true_random=False))
def test_any_tasks_in_any_tree(work: Work, cuts: set[int], draw) -> None:
    job = CountJob(work=work, memory=10**9)
    whole = job.partial(job.run(work.plan))[0]
    sent = pickle.loads(pickle.dumps(job.sent()))
    bounds = [0, *sorted(cuts & set(range(1, len(work.plan)))), len(work.plan)]
    parts = [sent.partial(sent.run(work.plan.part(*each))) for each in pairwise(bounds)]
    while len(parts) > 1:
        draw.shuffle(parts)
        count = draw.randint(2, FAN_IN)
        parts[:count] = [sent.merge(*parts[:count])]
    state = parts[0][0]
    assert state.keys() == whole.keys()
    assert all(np.array_equal(array, whole[name]) for name, array in state.items())


def fail(kind: str) -> None:
    raise getattr(errors, kind)("what", "how")


def test_errors_travel_as_values_and_end_the_run() -> None:
    engine = InProcess()
    calls = [((kind,), 1) for kind in ("CorpusError", "CorpusError")]
    with pytest.raises(errors.CorpusError, match="what"):
        engine.map(Task(function=fail, memory=1), calls, SILENT)
    assert len(engine.ray.cancelled) == 2
    with pytest.raises(errors.InputError, match="what"):
        list(engine.stream(Task(function=fail, memory=1), [(("InputError",), 0)]))


def test_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error, value = ray._guarded("0.0.7", abs, -1)
    assert isinstance(error, MismatchError)
    assert error.message == f"a worker has engram {__version__}, this is 0.0.7"
    assert value is None
    [told] = ray._guarded_stream("0.0.7", range, 3)
    assert isinstance(told, MismatchError)


def test_what_no_node_can_take_is_refused() -> None:
    with pytest.raises(InputError, match="a task takes 4 CPUs and 1 MB; the nodes of this cluster"):
        InProcess().slots(Task(function=abs, memory=10**6, cpus=4))


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


@dataclass(frozen=True)
class Leaves:
    """A job that gathers the names of its files, and counts the merges on the way to each."""

    what = "gathering"
    memory = merge_memory = 1

    def sent(self) -> Leaves:
        return self

    def run(self, plan: Plan) -> dict[str, int]:
        return {file.name: 0 for file in plan.files}

    def partial(self, result: dict[str, int]) -> dict[str, int]:
        return result

    def merge(self, *partials: dict[str, int]) -> dict[str, int]:
        assert 2 <= len(partials) <= FAN_IN
        names = [(name, depth + 1) for each in partials for name, depth in each.items()]
        assert len(dict(names)) == len(names)
        return dict(names)

    def result(self, partial: dict[str, int]) -> dict[str, int]:
        return partial


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 9))
def test_a_tree_merges_all_once(files: int, cpus: int) -> None:
    names = [str(at) for at in range(files)]
    plan = Plan(
        files=tuple(
            CorpusFile(name=name, path=Path(name), format="text", size=9) for name in names
        ),
        begins=tuple(range(files)),
    )
    found = InProcess(cpus=cpus).reduce(Leaves(), plan, SILENT)
    assert sorted(found) == sorted(file.name for file in portable(plan).files)
    assert max(found.values()) <= 4


def test_pairs_of_spans_are_those_of_the_whole(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    for name in ("next-token", "token-mean"):
        what = fill_spec(layout, file, random_vectors(layout), name).init.token_pairs
        write_pairs(tmp_path / name, what, 3, 3, memory=2**20)
        found = [
            span_pairs(what, 3, 3, file.map()[part.first : part.last], part)
            for part in token_spans(what, 613)
        ]
        assert len(found) == 5
        whole = np.fromfile(tmp_path / name, dtype="<u8")
        assert united(np.concatenate(found)) == united(whole)


def test_what_is_interrupted_inside_a_partition_starts_over(work: Work) -> None:
    plan = work.plan
    assert len(plan) > 3
    assert _partition_after(plan, None) == 0
    assert _partition_after(plan, ReadPosition(file=plan.begins[2])) == 2
    assert _partition_after(plan, ReadPosition(file=len(plan.files))) == len(plan)
    assert _partition_after(plan, ReadPosition(file=plan.begins[2], items=1)) is None
    assert _partition_after(plan, ReadPosition(file=plan.begins[2], open=True)) is None
    inside = set(range(len(plan.files))) - set(plan.begins)
    assert all(_partition_after(plan, ReadPosition(file=at)) is None for at in inside)


def test_a_task_keeps_to_its_memory() -> None:
    memory = TaskMemory.divide(2 * 10**9, tokens=129_280, dim=64, lags=3)
    room = 2 * 10**9 - 350 * 10**6 - 24 * 129_280 * 64
    assert memory.rows * (12 * 64 + 8) <= room // 2
    assert memory.pairs * 24 <= room // 2
    assert memory.span * 3 * 24 <= room // 2  # one block is always taken
    assert memory.span * 3 * 40 <= room
    with pytest.raises(InputError, match="100 MB a task"):
        TaskMemory.divide(10**8, tokens=10, dim=4, lags=1)


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 40))
def test_ranges_cover_their_rows_once(begin: int, count: int, most: int) -> None:
    cuts = _cut((begin, begin + count), most)
    rows = [row for first, last in cuts for row in range(first, last)]
    assert rows == list(range(begin, begin + count))
    assert all(last - first <= most for first, last in cuts)


@given(st.sets(st.integers(0, 30)))
def test_runs_are_what_their_spans_cover(chunks: set[int]) -> None:
    runs = list(_runs([(4 * chunk, 4) for chunk in sorted(chunks)]))
    rows = [row for first, count in runs for row in range(first, first + count)]
    assert rows == [4 * chunk + at for chunk in sorted(chunks) for at in range(4)]
    assert all(one[0] + one[1] < two[0] for one, two in pairwise(runs))

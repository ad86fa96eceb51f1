"""What every engine does with both jobs: the same counts, tokens and rows, the same errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.fake_ray import InProcess
from table.filled import fill, fill_spec, matrix_vectors, random_vectors, write_corpus
from table.tables import mapped_layout, raw_layout

from engram_cli.corpus.base import ReadPosition
from engram_cli.corpus.encode import EncoderDiffers, ReferenceEncoder
from engram_cli.corpus.partitions import plan_partitions
from engram_cli.corpus.sources import find_sources
from engram_cli.engines import base, corpus_tokens, filling
from engram_cli.engines.base import ENGINES, Engine, Reading, Task
from engram_cli.engines.corpus_tokens import write_tokens
from engram_cli.engines.counting import Counted, CountJob, Running, Work, count
from engram_cli.engines.filling import on_chosen_engine, on_engine
from engram_cli.engines.local import LocalEngine
from engram_cli.errors import CorpusError, InputError, UndecodableError
from engram_cli.progress import SILENT
from engram_cli.stats.collector_set import sources_of
from engram_cli.stats.counting.memory import plan_memory
from engram_cli.stats.state import State
from engram_cli.table.inits.corpus.tokens import TokenWriter

MADE: dict[str, Callable[[], Engine]] = {"local": lambda: LocalEngine(2), "ray": InProcess}


class Heard:
    """Remembers the progress."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.totals: list[int | None] = []
        self.done = 0

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.totals.append(total)
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(params=sorted(MADE))
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine; that of Ray without a cluster."""
    return MADE[request.param]()


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks for small corpora."""
    monkeypatch.setattr(filling, "_LONGEST", 997)
    monkeypatch.setattr(filling, "_LEAST_ROWS", 37)
    monkeypatch.setattr(filling, "_MATRIX_ROWS", 7)
    monkeypatch.setattr(corpus_tokens, "_PIECE", 64)
    monkeypatch.setattr(LocalEngine, "store_bytes", 4 * 4096)


@pytest.fixture
def running(work: Work, tmp_path: Path) -> Running:
    """Nothing is kept."""
    memory = plan_memory(work.layout, 64, 2, text=True)
    return Running(memory=memory, checkpoints=tmp_path / "kept", fingerprint=None)


def state_of(counted: Counted) -> State:
    return counted.partial.state()


def with_bad_text(plan_of: Work | Reading, folder: Path) -> Any:
    """The plan of a corpus with a byte that is not UTF-8."""
    (folder / "a.txt").write_bytes(b"fine\xff")
    options = plan_of.options if isinstance(plan_of, Reading) else plan_of.reading.options
    return plan_partitions(find_sources([folder / "a.txt"], options).files, options)


def test_every_engine_is_here() -> None:
    assert list(ENGINES) == list(MADE)
    for name, made in MADE.items():
        engine = made()
        assert engine.remote == (name != "local")
        assert engine.slots(Task(function=print, memory=1)) >= 1


def test_calls_are_mapped_and_streamed_in_order(engine: Engine) -> None:
    progress = Heard()
    task = Task(function=divmod, memory=1)
    found = engine.map(task, [((at, 3), at) for at in range(9)], progress)
    assert [engine.get(each) for each in found] == [divmod(at, 3) for at in range(9)]
    assert progress.done == sum(range(9))
    assert list(engine.stream(Task(function=range, memory=1), [((3,), 0), ((2,), 0)])) == [
        *(0, 1, 2, 0, 1)
    ]
    array = np.arange(5)
    assert engine.get(engine.put(array)).tolist() == array.tolist()
    assert engine.fetch(engine.put(array)).flags.writeable


def test_counts_are_the_same(engine: Engine, work: Work, running: Running) -> None:
    whole = CountJob(work=work, memory=10**9).run(work.plan)
    progress = Heard()
    counted = count(engine, work, running, progress)
    wanted, found = state_of(whole), state_of(counted)
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(array, found[name]) for name, array in wanted.items())
    assert counted.encoder == whole.encoder == "tokenizers"
    assert counted.empty_files == whole.empty_files == 1
    assert (progress.totals, progress.done) == ([work.plan.size], work.plan.size)
    assert "1 empty files were skipped" in progress.notes


def test_errors_of_counting_are_those_of_the_corpus(
    engine: Engine, work: Work, running: Running, tmp_path: Path
) -> None:
    bad = replace(work, plan=with_bad_text(work, tmp_path), source_of={})
    with pytest.raises(UndecodableError) as error:
        count(engine, bad, running, SILENT)
    assert error.value.message == f"{tmp_path}/a.txt, line 1: byte 4 is not UTF-8 (0xFF)"
    (tmp_path / "b.txt").write_text("")
    options = work.reading.options
    plan = plan_partitions(find_sources([tmp_path / "b.txt"], options).files, options)
    with pytest.raises(CorpusError, match=r"b\.txt holds no token"):
        count(
            engine,
            replace(work, plan=plan, source_of=sources_of(plan.files, "file")),
            running,
            SILENT,
        )


def test_an_encoder_that_differs_is_left(
    engine: Engine, work: Work, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def made(tokenizer: Any, name: str, progress: Any, **_: Any) -> Any:
        asked.append(name)
        if name != "tokenizers":
            raise EncoderDiffers("fast differs", "tell")
        return ReferenceEncoder(tokenizer)

    monkeypatch.setattr(base, "make_encoder", made)
    progress = Heard()
    counted = count(engine, work, running, progress)
    assert counted.counts.tokens
    assert set(asked) == {"auto", "tokenizers"}
    assert "fast differs: counting again from the start with tokenizers" in progress.notes


def test_a_pipe_is_read_here_alone(engine: Engine, work: Work, running: Running) -> None:
    file = replace(work.plan.files[0], path=None, name="<stdin>")
    piped = replace(work, plan=replace(work.plan, files=(file,), begins=(0,)))
    if engine.remote:
        with pytest.raises(InputError, match="<stdin> cannot be read by the workers of a cluster"):
            count(engine, piped, running, SILENT)


@pytest.mark.parametrize(
    ("name", "layout", "joined", "vectors"),
    [
        ("next-token", mapped_layout, False, random_vectors),
        ("next-token", raw_layout, True, matrix_vectors),
        ("token-mean", mapped_layout, False, matrix_vectors),
    ],
)
def test_rows_are_the_same(
    engine: Engine, tmp_path: Path, name: str, layout: Any, joined: bool, vectors: Any
) -> None:
    made = layout()
    file = write_corpus(tmp_path / "tokens", made)
    spec = fill_spec(made, file, vectors(made), name, joined=joined, dtype="int8")
    plain = fill(tmp_path / "a.zarr", spec, threads=2)
    tasks = on_engine(engine, spec.init, slots=3)
    layer, array = next(iter(spec.row_arrays.items()))
    spans = [array.span(index) for index in range(array.chunks)]
    assert len(tasks.passes(layer, spec.dim, spans)) > 1
    assert fill(tmp_path / "b.zarr", replace(spec, init=tasks), threads=2).digest == plain.digest
    assert (on_chosen_engine(engine, spec.init, SILENT) is spec.init) == (not engine.remote)


def test_tokens_are_the_same_and_resume_after_any_partition(
    engine: Engine, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_cli.table.inits.corpus.tokens.KEEP_SECONDS", -1.0)  # each time
    plan, reading = work.plan, work.reading
    wanted = TokenWriter(tmp_path / "wanted", "r")
    write_tokens(LocalEngine(1), reading, plan, wanted, SILENT)
    assert wanted.finished is not None

    class Stopped(TokenWriter):
        def _keep(self, file: Any, read_position: ReadPosition | None, *, complete: bool) -> None:
            super()._keep(file, read_position, complete=complete)
            # Batches end where time has it: a position at that very file may not come.
            if read_position is not None and read_position.file >= plan.begins[2]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(engine, reading, plan, Stopped(tmp_path / "cut", "r"), SILENT)
    for folder in ("cut", "fresh"):
        for name, made in MADE.items():  # whichever engine continues
            copy = tmp_path / f"{folder}-{name}"
            if (tmp_path / folder).exists():
                shutil.copytree(tmp_path / folder, copy)
            writer = TokenWriter(copy, "r")
            assert bool(writer.tokens) == (folder == "cut")
            progress = Heard()
            write_tokens(made(), reading, plan, writer, progress)
            assert writer.finished is not None
            found = replace(writer.finished, path=wanted.finished.path)
            assert found == wanted.finished


def test_errors_of_tokens_are_those_of_the_corpus(
    engine: Engine, work: Work, tmp_path: Path
) -> None:
    plan = with_bad_text(work, tmp_path)
    with pytest.raises(UndecodableError, match="byte 4 is not UTF-8"):
        write_tokens(engine, work.reading, plan, TokenWriter(tmp_path / "tokens", None), SILENT)


@pytest.mark.parametrize("job", ["count", "tokens"])
def test_ctrl_c_ends_a_run(
    engine: Engine, work: Work, running: Running, tmp_path: Path, job: str
) -> None:
    class Stop(Heard):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    def run() -> None:
        if job == "count":
            count(engine, work, running, Stop())
        else:
            writer = TokenWriter(tmp_path / "tokens", "r")
            write_tokens(engine, work.reading, work.plan, writer, Stop())

    with pytest.raises(KeyboardInterrupt):
        run()
    if isinstance(engine, InProcess):
        assert engine.ray.cancelled  # whatever was under way

"""Tokens, pairs and rows made by tasks of any size are those of the local engine: no cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import PROSE
from stats.truth import layout_of
from table.filled import fill, fill_spec, matrix_vectors, random_vectors, write_corpus
from table.plain import united
from table.tables import mapped_layout, raw_layout

from engram_cli.corpus.base import CorpusOptions, ReadPosition
from engram_cli.corpus.partitions import plan_partitions
from engram_cli.corpus.sources import find_sources
from engram_cli.engines import fill_tasks, ray_filling, tasks
from engram_cli.engines.fill_tasks import TaskMemory, token_pieces
from engram_cli.engines.filling import FILL_ENGINES, LocalFill, TokenWork
from engram_cli.engines.ray import Cluster
from engram_cli.engines.ray_filling import RayFill, _cut, _partition_after, _runs
from engram_cli.errors import CorpusError, InputError, MismatchError
from engram_cli.progress import SILENT
from engram_cli.table.inits.corpus.pairs import span_pairs, token_spans, write_pairs
from engram_cli.table.inits.corpus.tokens import Piece, TokenWriter
from engram_cli.vocab.tokenizer import load_tokenizer


class InProcess(Cluster):
    """Does every task at once; what it holds is read-only, as on a cluster."""

    store_bytes = 4 * 4096

    def __init__(self) -> None:
        self.given_up: list[Any] = []

    def slots(self, cpus: int, memory: int) -> int:
        return 3

    def put(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        return value

    def get(self, reference: Any) -> Any:
        return reference

    def task(self, function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        def submit(*given: Any) -> Any:
            found = function(*given)
            if isinstance(found, tuple):
                self.put(found[1])
            return found

        return submit

    def items(self, stream: Any) -> Iterator[Any]:
        yield from stream

    def gather(self, calls: Iterable[Any], progress: Any) -> list[Any]:
        for report, _, _ in calls:
            if report.error is not None:
                raise report.error
        return [state for _, state, _ in calls]

    def cancel(self, references: Iterable[Any]) -> None:
        self.given_up += references

    def failures(self) -> Any:
        return nullcontext()


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks for small corpora."""
    monkeypatch.setattr(fill_tasks, "_LONGEST", 997)
    monkeypatch.setattr(ray_filling, "_LEAST_ROWS", 37)
    monkeypatch.setattr(ray_filling, "_MATRIX_ROWS", 7)
    monkeypatch.setattr(ray_filling, "fetched", np.array)


@pytest.mark.parametrize(
    ("name", "layout", "joined", "vectors"),
    [
        ("next-token", mapped_layout, False, random_vectors),
        ("next-token", raw_layout, True, matrix_vectors),
        ("token-mean", mapped_layout, False, matrix_vectors),
    ],
)
def test_rows_are_those_of_the_local_engine(
    tmp_path: Path, name: str, layout: Any, joined: bool, vectors: Any
) -> None:
    made = layout()
    file = write_corpus(tmp_path / "tokens", made)
    spec = fill_spec(made, file, vectors(made), name, joined=joined, dtype="int8")
    local = fill(tmp_path / "a.zarr", spec, threads=2)
    far = RayFill(InProcess(), 1, SILENT).placed(spec.init)
    layer, array = next(iter(spec.row_arrays.items()))
    spans = [array.span(index) for index in range(array.chunks)]
    assert len(far.passes(layer, spec.dim, spans)) > 1
    again = fill(tmp_path / "b.zarr", replace(spec, init=far), threads=2)
    assert again.digest == local.digest


def test_pairs_of_stretches_are_those_of_the_whole(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    for name in ("next-token", "token-mean"):
        what = fill_spec(layout, file, random_vectors(layout), name).init.occurrences
        write_pairs(tmp_path / name, what, 3, 3, memory=2**20)
        found = [
            span_pairs(what, 3, 3, file.map()[part.first : part.last], part)
            for part in token_spans(what, 613)
        ]
        assert len(found) == 5
        whole = np.fromfile(tmp_path / name, dtype="<u8")
        assert united(np.concatenate(found)) == united(whole)


@pytest.fixture
def work(tmp_path: Path, tokenizer_file: Path) -> TokenWork:
    """Nine files of text in six partitions."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for at in range(9):
        text = f"{at} " + PROSE[at % len(PROSE)] * (6 + at % 5)
        (folder / f"{at}.txt").write_text(text, encoding="utf-8")
    tokenizer, options = load_tokenizer(tokenizer_file), CorpusOptions()
    return TokenWork(
        plan=plan_partitions(find_sources([folder], options).files, options, 1024),
        options=options,
        layout=layout_of(moduli=(101, 103), heads=1, size=max(tokenizer.spellings()) + 1),
        tokenizer=tokenizer,
        encoder="tokenizers",
    )


def test_tokens_come_in_order_and_go_on_after_any_partition(
    tmp_path: Path, work: TokenWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_tasks, "_PIECE", 64)
    monkeypatch.setattr("engram_cli.table.inits.corpus.tokens.KEEP_SECONDS", 0.0)
    local = TokenWriter(tmp_path / "local", "r")
    LocalFill().write_tokens(work, local, SILENT)
    assert local.finished is not None
    far = RayFill(InProcess(), 1, SILENT)

    class Broken(TokenWriter):
        def _keep(self, file: Any, read_position: ReadPosition | None, *, complete: bool) -> None:
            super()._keep(file, read_position, complete=complete)
            if read_position is not None and read_position.file == work.plan.begins[2]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        far.write_tokens(work, Broken(tmp_path / "far", "r"), SILENT)
    for engine, folder in ((far, "far"), (LocalFill(), "far"), (far, "fresh")):
        copy = tmp_path / "copy"
        if (tmp_path / folder).exists():
            shutil.copytree(tmp_path / folder, copy)
        writer = TokenWriter(copy, "r")
        assert bool(writer.tokens) == (folder == "far")
        engine.write_tokens(work, writer, SILENT)
        assert writer.finished is not None
        assert writer.finished.digest == local.finished.digest
        assert replace(writer.finished, path=Path()) == replace(local.finished, path=Path())
        writer.restart()


def test_what_is_broken_off_inside_a_partition_begins_anew(work: TokenWork) -> None:
    plan = work.plan
    assert len(plan) > 3
    assert _partition_after(plan, None) == 0
    assert _partition_after(plan, ReadPosition(file=plan.begins[2])) == 2
    assert _partition_after(plan, ReadPosition(file=len(plan.files))) == len(plan)
    assert _partition_after(plan, ReadPosition(file=plan.begins[2], items=1)) is None
    assert _partition_after(plan, ReadPosition(file=plan.begins[2], open=True)) is None
    inside = set(range(len(plan.files))) - set(plan.begins)
    assert all(_partition_after(plan, ReadPosition(file=at)) is None for at in inside)


def test_errors_of_reading_travel_as_values(
    work: TokenWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\xff")
    plan = plan_partitions(find_sources([tmp_path / "a.txt"], work.options).files, work.options)
    bad = replace(work, plan=plan)
    far = RayFill(InProcess(), 1, SILENT)
    with pytest.raises(CorpusError, match="byte 4 is not UTF-8"):
        far.write_tokens(bad, TokenWriter(tmp_path / "tokens", None), SILENT)
    reading = tasks.reading_of(work.layout, work.options, work.tokenizer, "tokenizers", 1)
    *pieces, last = token_pieces(replace(reading, version="0.0.7"), work.plan)
    assert pieces == []
    assert not isinstance(last, Piece)
    assert isinstance(last.error, MismatchError)


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


def test_engines_are_known_by_name() -> None:
    assert list(FILL_ENGINES) == ["local", "ray"]
    assert FILL_ENGINES.load("ray") is ray_filling.ray_fill

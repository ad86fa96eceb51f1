"""diff counts and measures changed rows, tells codecs' noise from edits, and names n-grams."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands.made import Made
from numpy.typing import NDArray

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.command import convert_table
from engram_cli.commands.convert.to import convert
from engram_cli.commands.diff.command import diff
from engram_cli.commands.diff.result import DiffResult
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.errors import InputError, OutputError
from engram_cli.hashing.hasher import plan_layer
from engram_cli.rows.source import RowSource
from engram_cli.stats.sampling.known import ngram_rows
from engram_cli.stats.stats_io import read_stats

Rows = NDArray[np.float32]


def compared(before: Path, after: Path, **options: object) -> DiffResult:
    return diff(DiffRequest(before=before, after=after, threads=2, **options))  # type: ignore[arg-type]


def array_of(table: Path, layer: int) -> Any:
    """The rows of a table as they are stored, to be read and changed."""
    return zarr.open_array(table / str(layer), mode="r+")


def edited(
    made: Made, rows: dict[int, Iterable[int]], change: Callable[[Rows], Rows], name: str = "after"
) -> Path:
    """A copy of the table with some rows of layers changed."""
    path = made.folder / f"{name}.zarr"
    shutil.copytree(made.table, path)
    for layer, ids in rows.items():
        array = array_of(path, layer)
        values = array[:]
        at = np.array(list(ids))
        values[at] = change(values[at])
        array[:] = values
    return path


def rows_of(source: RowSource, layer: int, ngrams: NDArray[np.int32]) -> NDArray[np.int64]:
    """The table rows [n, heads] of n-grams."""
    layout, entry = source.layout, source.layout.layer(layer)
    index, heads = layout.orders.index(ngrams.shape[1]), layout.heads
    own = ngram_rows(ngrams, plan_layer(layout, entry), index, heads)
    offsets = np.array(entry.offsets[index * heads : (index + 1) * heads])
    return (own.astype(np.int64) + offsets[:, None]).T


@pytest.mark.parametrize("kind", ["table", "bundle"])
def test_an_artifact_is_equal_to_itself(made_once: Made, kind: str) -> None:
    path = getattr(made_once, kind)
    result = compared(path, path)
    assert (result.verdict, result.changed, result.within) == ("equal", 0, 0)
    assert result.same
    assert (result.most, result.ngrams, result.change_shares) == ((), (), ())
    assert result.memory_bytes == result.rows


def test_a_bundle_is_equal_to_its_table(made_once: Made) -> None:
    assert compared(made_once.table, made_once.bundle).verdict == "equal"
    assert compared(made_once.bundle.parent, made_once.table).verdict == "equal"


def test_rows_are_counted_and_measured_by_layer_order_and_head(made: Made) -> None:
    entry = find_artifact(made.table).open().layout.layer(2)
    row = entry.offsets[5] + 7
    after = edited(made, {2: [row]}, lambda values: -3 * values)
    result = compared(made.table, after)
    assert (result.verdict, result.changed, result.within, result.same) == ("changed", 1, 0, False)
    (column,) = [each for each in result.columns if each.changed]
    assert (column.layer, column.order, column.head) == (2, 3, 1)
    assert column.cosine == pytest.approx(-1)
    assert column.relative == pytest.approx(4)
    assert column.largest == column.relative
    (most,) = result.most
    assert (most.layer, most.order, most.head, most.row) == (2, 3, 1, 7)
    assert most.table_row == row
    values = array_of(made.table, 2)[row]
    assert most.norm == pytest.approx(4 * np.linalg.norm(values))
    assert result.half_rows == 1


def test_zeros_of_either_sign_are_equal_and_nan_counts_as_a_change(made: Made) -> None:
    before = edited(made, {1: [3, 4]}, np.zeros_like, "before")
    minus = shutil.copytree(before, made.folder / "minus.zarr")
    array = array_of(minus, 1)
    array[3] = -np.zeros(array.shape[1], dtype=np.float32)
    assert compared(before, minus).verdict == "equal"
    array[4] = np.nan
    result = compared(before, minus)
    assert (result.changed, sum(each.not_finite for each in result.columns)) == (1, 1)
    assert result.most == ()
    assert compared(minus, minus).verdict == "equal"


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "fp8_e8m0", "fp8", "int8", "int8_b32", "int4", "int4_b32"]
)
def test_a_requantised_copy_is_the_same_within_the_codecs_error(made: Made, dtype: str) -> None:
    copy = made.folder / "copy.zarr"
    convert_table(ConvertRequest(source=made.table, out=copy, dtype=dtype))
    for pair in ((made.table, copy), (copy, made.table)):
        result = compared(*pair)
        assert (result.verdict, result.changed) == ("within", 0)
        assert result.same
        assert 0 < result.within <= result.rows
    largest = np.abs(array_of(made.table, 1)[:]).max()
    after = edited(made, {1: [11]}, lambda values: values + largest)
    result = compared(after, copy)
    assert (result.verdict, result.changed) == ("changed", 1)
    assert result.most[0].table_row == 11


def test_copies_of_two_coarse_dtypes_are_the_same_too(made: Made) -> None:
    paths = {dtype: made.folder / f"{dtype}.zarr" for dtype in ("int8", "fp8_e8m0", "int4")}
    for dtype, path in paths.items():
        convert_table(ConvertRequest(source=made.table, out=path, dtype=dtype))
    assert compared(paths["int8"], paths["fp8_e8m0"]).verdict == "within"
    assert compared(paths["fp8_e8m0"], paths["int4"]).verdict == "within"


def test_one_step_of_a_quantised_row_is_a_change(made: Made) -> None:
    before = made.folder / "int8.zarr"
    convert_table(ConvertRequest(source=made.table, out=before, dtype="int8"))
    after = shutil.copytree(before, made.folder / "int8-edited.zarr")
    array = array_of(after, 1)
    row = array[20]
    row[np.abs(row.view(np.int8)).argmin()] += 1
    array[20] = row
    result = compared(before, after)
    assert (result.verdict, result.changed, result.within) == ("changed", 1, 0)


def test_planted_ngrams_are_named_and_those_of_a_fine_tuning_are_not(made: Made) -> None:
    """Rows of 40 n-grams are rewritten, after small steps on the rows of most other n-grams."""
    source, sample = find_artifact(made.table).open(), read_stats(made.stats).samples()[1]
    random = np.random.default_rng(5)
    order = random.permutation(len(sample.counts))
    planted, tuned = sample.tokens[order[:2]], sample.tokens[order[2:60]]
    steps = rows_of(source, 1, tuned).reshape(-1)
    scale = np.abs(array_of(made.table, 1)[:]).mean()
    diffuse = edited(
        made,
        {1: np.unique(steps)},
        lambda rows: rows + random.normal(0, 0.01 * scale, rows.shape),  # type: ignore[return-value]
    )
    array = array_of(diffuse, 1)
    values, rows = array[:], rows_of(source, 1, planted).reshape(-1)
    values[rows] = random.normal(0, 3 * scale, values[rows].shape)
    array[:] = values
    wanted = {tuple(each) for each in planted.tolist()}
    corpus = str(made.folder / "corpus.txt")
    for options in ({}, {"sources": (corpus,), "folder": made.folder}):
        result = compared(made.table, diffuse, **options)
        assert result.from_norm is not None
        assert result.stand_out == len(np.unique(rows))
        two, three = result.ngrams
        assert two.rows == 0
        assert {each.tokens for each in three.listed} == wanted
        assert three.explained == three.rows == result.stand_out
        counts = dict(zip(map(tuple, sample.tokens.tolist()), sample.counts.tolist(), strict=True))
        assert all(each.count == counts[each.tokens] and each.exact for each in three.listed)
        listed = [each.count for each in three.listed]
        assert listed == sorted(listed, reverse=True)
        assert all(each.layers == (1,) for each in three.listed)
    everything = compared(made.table, diffuse, at_least=1e-9, ngrams=1000)
    (_, three) = everything.ngrams
    assert {each.tokens for each in three.listed} >= wanted | set(map(tuple, tuned.tolist()))


def test_a_corpus_and_a_complete_sample_name_the_same_ngrams(made: Made) -> None:
    source, sample = find_artifact(made.table).open(), read_stats(made.stats).samples()[0]
    assert sample.exact
    rows = rows_of(source, 2, sample.tokens[::7]).reshape(-1)
    after = edited(made, {2: np.unique(rows)}, lambda values: values + 1)
    corpus = str(made.folder / "corpus.txt")
    by_sample = compared(made.table, after, ngrams=10**6)
    by_corpus = compared(made.table, after, ngrams=10**6, sources=(corpus,), folder=made.folder)
    assert by_sample.named_by == str(made.stats)
    assert by_corpus.named_by == corpus
    assert by_corpus.corpus_tokens == read_stats(made.stats).tokens
    assert by_sample.ngrams == by_corpus.ngrams
    assert by_corpus.ngrams[0].found >= len(sample.tokens[::7])


def test_without_statistics_rows_are_compared_and_nothing_is_named(
    made: Made, tmp_path: Path
) -> None:
    after = edited(made, {1: [5]}, lambda values: values + 1)
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for each in (made.table, after):
        shutil.move(each, alone / each.name)
    result = compared(alone / made.table.name, alone / after.name, folder=alone)
    assert (result.changed, result.named_by, result.ngrams) == (1, None, ())


def test_another_programs_checkpoint_is_compared_with_its_table(made: Made, tmp_path: Path) -> None:
    theirs, tokenizer = tmp_path / "demo.safetensors", made.folder / "tokenizer.json"
    convert(ConvertRequest(source=made.table, out=theirs, to="demo", dtype="float32"))
    assert compared(made.table, theirs, tokenizer=tokenizer).verdict == "equal"
    after = edited(made, {2: [9]}, lambda values: values + 1)
    result = compared(theirs, after, tokenizer=tokenizer)
    assert (result.changed, result.before.format) == (1, "demo")
    assert result.most[0].table_row == 9


def test_what_cannot_be_compared_is_refused_in_a_line(made: Made, tmp_path: Path) -> None:
    one = tmp_path / "one.zarr"
    convert(ConvertRequest(source=made.table, out=one, to="table", layers=(1,)))
    with pytest.raises(InputError, match=r"has layout .* layers 1, 2.* has .* layers 1, ") as error:
        compared(made.table, one)
    assert "\n" not in error.value.message
    with pytest.raises(InputError, match="holds no vectors"):
        compared(made.table, made.vocab)
    with pytest.raises(InputError, match="no rows that can be compared"):
        compared(made.stats, made.table)
    with pytest.raises(InputError, match="does not exist"):
        compared(made.table, tmp_path / "nothing")
    with pytest.raises(InputError, match="both name n-grams"):
        compared(made.table, made.table, stats=made.stats, sources=("corpus.txt",))
    with pytest.raises(InputError, match="--at-least"):
        compared(made.table, made.table, at_least=0.0)


def test_a_page_is_written_and_foreign_files_are_not_replaced(made: Made, tmp_path: Path) -> None:
    after = edited(made, {1: range(40)}, lambda values: 2 * values)
    page = tmp_path / "diff.html"
    result = compared(made.table, after, report=page)
    text = page.read_text(encoding="utf-8")
    assert result.report == page
    assert f"{result.changed} rows of" in text
    assert "Concentrated or diffuse" in text
    with pytest.raises(OutputError):
        compared(made.table, after, report=page)
    own = tmp_path / "mine.html"
    own.write_text("mine")
    with pytest.raises(OutputError):
        compared(made.table, after, report=own, force=True)
    assert own.read_text() == "mine"

"""diff reads every format of rows: each is equal to its table, edits are found, copies are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from formats.matrix import SOURCES, Source, make_sources

from engram_cli.commands.convert.to import convert
from engram_cli.commands.diff.command import diff
from engram_cli.commands.diff.result import DiffResult
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.formats import FORMATS
from engram_cli.vocab.compress import CompressedVocab

WITH_ROWS = [each for each in SOURCES if each.format not in ("statistics", "overlay")]
WIDE = ("bfloat16", "float16", "float32")


@pytest.fixture(scope="module")
def paths(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab, tokenizer_file: Path
) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"), small_vocab, tokenizer_file)


def compared(before: Path, after: Path, tokenizer: Path) -> DiffResult:
    return diff(DiffRequest(before=before, after=after, threads=2, tokenizer=tokenizer))


def table_of(source: Source, path: Path, out: Path, tokenizer: Path, dtype: str | None) -> Path:
    given = {"tokenizer": tokenizer} if source.options.get("tokenizer") else {}
    convert(ConvertRequest(source=path, to="table", out=out, dtype=dtype, **given))
    return out


def test_every_format_with_rows_is_tested() -> None:
    assert {each.format for each in SOURCES} == set(FORMATS)


@pytest.mark.parametrize("source", WITH_ROWS, ids=lambda each: each.label)
def test_a_format_equals_its_table_and_edits_are_found(
    source: Source, paths: dict[str, Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    path = paths[source.label]
    assert compared(path, path, tokenizer_file).verdict == "equal"
    table = table_of(source, path, tmp_path / "same.zarr", tokenizer_file, None)
    result = compared(path, table, tokenizer_file)
    assert (result.verdict, result.changed, result.within) == ("equal", 0, 0)
    assert (result.before.format, result.after.format) == (source.format, "table")
    wide = table_of(source, path, tmp_path / "wide.zarr", tokenizer_file, "float32")
    assert compared(path, wide, tokenizer_file).changed == 0
    layer = result.layers[-1]
    array = zarr.open_array(wide / str(layer), mode="r+")
    values = array[:]
    row = int(np.argmax(np.linalg.norm(values, axis=1)))
    values[row] *= -1
    array[:] = values
    for pair in ((path, wide), (wide, path)):
        changed = compared(*pair, tokenizer_file)
        assert (changed.verdict, changed.changed) == ("changed", 1)
        assert [(each.layer, each.table_row) for each in changed.most] == [(layer, row)]
        assert changed.most[0].cosine == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize("dtype", ["fp8", "int8", "int4", "bfloat16"])
@pytest.mark.parametrize("source", WITH_ROWS, ids=lambda each: each.label)
def test_a_requantised_copy_of_a_format_is_the_same(
    source: Source, dtype: str, paths: dict[str, Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    path = paths[source.label]
    copy = table_of(source, path, tmp_path / "copy.zarr", tokenizer_file, dtype)
    for pair in ((path, copy), (copy, path)):
        result = compared(*pair, tokenizer_file)
        assert result.changed == 0
        assert result.same

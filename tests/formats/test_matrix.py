"""Every pair of a source and a target: converted and read back, or refused with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from formats import matrix
from formats.matrix import ALL_TARGETS, SOURCES, Cell, Source

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.to import convert
from engram_cli.errors import EngramError
from engram_cli.formats import FORMATS
from engram_cli.formats.overlay import Overlay
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import kept_dtype
from engram_cli.vocab.compress import CompressedVocab


@dataclass(frozen=True)
class Sources:
    """The paths of all sources by label, their tokenizer, and every cell."""

    paths: dict[str, Path]
    tokenizer: Path
    cells: dict[tuple[str, str], Cell]


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Sources:
    folder = tmp_path_factory.mktemp("matrix")
    paths = matrix.make_sources(folder, small_vocab, tokenizer_file)
    return Sources(paths, tokenizer_file, matrix.all_cells(paths, folder, tokenizer_file))


def test_the_page_is_that_of_the_registries(sources: Sources) -> None:
    """python tests/formats/matrix.py writes it again."""
    assert {source.format for source in SOURCES} == set(FORMATS)
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page(sources.cells)


@pytest.mark.parametrize("to", ALL_TARGETS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.label)
def test_pair(sources: Sources, source: Source, to: str, tmp_path: Path) -> None:
    path, cell = sources.paths[source.label], sources.cells[source.label, to]
    request = matrix.request(source, path, to, tmp_path / "out", sources.tokenizer, **cell.options)
    if cell.reason:
        with pytest.raises(EngramError) as error:
            convert(request)
        assert error.value.hint
        assert not os.listdir(tmp_path)
        return
    convert(request)
    assert os.listdir(tmp_path) == [request.out.name]  # no work folder stays
    before = find_artifact(path).open(tokenizer=sources.tokenizer)
    after = find_artifact(request.out).open(tokenizer=sources.tokenizer)
    layers = cell.options.get("layers", before.layers)
    dtype = cell.options.get("dtype") or before.dtype or ""
    if isinstance(before, Overlay):
        assert isinstance(after, Overlay)
        assert np.array_equal(after.row_numbers(), before.row_numbers())
        for old, new in zip(before.pieces(), after.pieces(), strict=True):
            assert np.array_equal(old, new)
        return
    if isinstance(after, Overlay):
        ((layer,), (first, stop)) = layers, cell.options["rows"]
        assert after.row_numbers().tolist() == list(range(first, stop))
        pieces = [piece for piece in after.pieces() if piece is not None]
        if pieces:  # rows with scales are bytes, which an overlay does not decode
            wanted = decoded(before, layer, first, stop, dtype if to == "plepatch" else "float32")
            assert np.array_equal(np.concatenate(pieces), wanted)
        return
    assert after.layers == layers
    assert after.layout.fingerprint == before.layout.fingerprint
    for layer in layers:
        rows = before.layout.layer(layer).rows
        if "dtype" in cell.options:
            assert after.dtype == dtype
            values = np.empty((rows, before.dim), dtype=np.float32)
            after.read(layer, 0, values)
            assert np.array_equal(values, decoded(before, layer, 0, rows, dtype))
        else:
            assert_same_bytes(before, after, layer, rows)


def assert_same_bytes(before: RowSource, after: RowSource, layer: int, rows: int) -> None:
    """Compare rows and scales as they are stored, byte for byte."""
    assert kept_dtype(after.dtype or "") == kept_dtype(before.dtype or "")
    parts = [ROWS] if DTYPES.load(before.dtype or "").scaling is None else [ROWS, SCALES]
    for part in parts:
        pair = [each.lines(layer, part, 0, rows) for each in (before, after)]
        assert pair[0].tobytes() == pair[1].tobytes()


def decoded(source: RowSource, layer: int, first: int, stop: int, dtype: str) -> np.ndarray:
    """The values of rows of a source after they were stored as `dtype`."""
    values = np.empty((stop - first, source.dim), dtype=np.float32)
    source.read(layer, first, values)
    if dtype == source.dtype:
        return values
    row_type = DTYPES.load(dtype)
    assert not row_type.of_layer
    rows = np.empty((len(values), row_type.width(values.shape[1])), row_type.items.physical)
    scales = None
    if row_type.scaling is not None:
        scales = np.empty(row_type.scaling.shape(*values.shape), row_type.scaling.dtype)
    row_type.encode(values, rows, scales)
    row_type.decode(rows, scales, values)
    return values

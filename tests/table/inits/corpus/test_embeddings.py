"""Vectors of tokens: their projections, kept in the table, and those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from table.filled import DIM, HIDDEN, fill, fill_spec, matrix_vectors, write_corpus
from table.tables import mapped_layout, tamper

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.table.convert import conversion
from engram_cli.table.inits.corpus.embeddings import MatrixEmbeddings, RandomEmbeddings
from engram_cli.table.store import open_array, open_table


def test_a_projection_is_orthonormal_and_stored(tmp_path: Path) -> None:
    layout = mapped_layout()
    vectors = matrix_vectors(layout)
    file = write_corpus(tmp_path / "tokens", layout)
    table = open_table(fill(tmp_path / "t.zarr", fill_spec(layout, file, vectors)).path)
    stored = np.asarray(zarr.open_group(tmp_path / "t.zarr", mode="r")["projection/3"])
    assert stored.shape == (layout.columns * HIDDEN, DIM)
    for column in range(layout.columns):
        own = stored[column * HIDDEN : (column + 1) * HIDDEN]
        np.testing.assert_array_equal(own, vectors.projection(3, column, DIM))
        np.testing.assert_allclose(own.T @ own, np.eye(DIM), atol=1e-6)
    wide = vectors.projection(3, 0, 40)
    np.testing.assert_allclose(wide @ wide.T, np.eye(HIDDEN), atol=1e-6)
    values, scale = vectors.vectors(3, 1, DIM)
    exact = vectors.read(0, vectors.tokens).astype(np.float64) @ stored[HIDDEN : 2 * HIDDEN]
    np.testing.assert_allclose(values * scale, exact, atol=0.51 * scale + 1e-6)
    assert table.attributes["init"]["parameters"]["embeddings"]["hidden"] == HIDDEN


def test_a_tampered_hidden_size_is_refused(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    fill(tmp_path / "t.zarr", fill_spec(layout, file, matrix_vectors(layout)))

    def edit(attributes: dict[str, Any]) -> None:
        attributes["init"]["parameters"]["embeddings"]["hidden"] = 10**9

    tamper(tmp_path / "t.zarr", edit)
    with pytest.raises(ArtifactError, match="hidden"):
        open_table(tmp_path / "t.zarr")


def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    with pytest.raises(MismatchError, match="embeddings have 5 rows"):
        fill_spec(layout, file, RandomEmbeddings(tokens=5))
    with pytest.raises(InputError, match="std"):
        RandomEmbeddings(tokens=5, std=-1.0)
    nan = np.full((40, 8), np.nan, dtype=np.float32)
    broken = MatrixEmbeddings(
        tokens=40, hidden=8, read=lambda b, e: nan[b:e], name="lm_head.weight", digest=""
    )
    with pytest.raises(ArtifactError, match="lm_head"):
        broken.vectors(0, 0, 4)


def test_a_converted_table_keeps_its_projections(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    source = open_table(
        fill(tmp_path / "a.zarr", fill_spec(layout, file, matrix_vectors(layout))).path
    )
    converted = open_table(fill(tmp_path / "b.zarr", conversion(source, "int8")).path)
    assert verify_table(converted.path).ok
    for name in ("projection/0", "projection/3"):
        first, second = (
            open_array(t.path, t.arrays[name]).read(0, t.arrays[name].rows)
            for t in (source, converted)
        )
        np.testing.assert_array_equal(first, second)

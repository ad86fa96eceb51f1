"""LongCat's hash, a scheme that is one file and one line, through hash-stats and a table."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from engram_cli import hash_tokens
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.init_corpus import FillRequest
from engram_cli.commands.requests.options import declared
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError
from engram_cli.hashing.schemes import SCHEMES
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.store import open_table

GEOMETRY = Geometry(
    scheme="longcat", vocab_size=500, eos_id=2, orders=(2, 3, 4), heads=2, rows_per_head=(9001,)
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four documents of ids, with EOS inside."""
    for name in range(4):
        ids = np.random.default_rng(name).zipf(1.3, 3000) % 500
        np.save(tmp_path / f"{name}.npy", ids.astype(np.uint16))
    return tmp_path


def test_counts_rows_and_tables(corpus: Path) -> None:
    files = tuple(sorted(corpus.glob("*.npy")))
    hash_stats(
        HashStatsRequest(sources=files, geometry=GEOMETRY, workspace=Workspace(corpus), threads=2)
    )
    stats = read_stats(Workspace(corpus).stats)
    rows = [hash_tokens(stats.layout, np.load(file)) for file in files]
    wanted = np.bincount(np.concatenate(rows).reshape(-1), minlength=stats.layout.layers[0].rows)
    np.testing.assert_array_equal(stats.hits(0), wanted)
    assert stats.document["orders"][2]["exact"]
    build_table(BuildTableRequest(stats=Workspace(corpus).stats, out=corpus / "t.zarr", dim=8))
    table = open_table(corpus / "t.zarr")
    assert table.layout.fingerprint == stats.layout.fingerprint
    for artifact in (Workspace(corpus).stats, corpus / "t.zarr"):
        assert not verify(VerifyRequest(path=artifact)).problems


def test_rows_are_not_filled_from_a_corpus(corpus: Path) -> None:
    """N-grams are united by their mix there, and these have none."""
    fill = FillRequest(sources=(str(corpus / "0.npy"),))
    request = BuildTableRequest(
        geometry=GEOMETRY, out=corpus / "t.zarr", dim=8, init="token-mean", fill=fill
    )
    with pytest.raises(InputError, match="longcat cannot be filled from a corpus"):
        build_table(request)
    assert not (corpus / "t.zarr").exists()


def test_the_help_names_every_scheme() -> None:
    text = next(each.option.help for each in declared(Geometry) if each.name == "scheme")
    assert set(re.findall(r"[a-z][a-z0-9.-]*[a-z0-9]", text)) >= set(SCHEMES)

"""Scales beside the rows are as untrusted, checked and locked as the rows are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from table.tables import build, tamper

from engram_cli.errors import ArtifactError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.table.build import build_store
from engram_cli.table.convert import conversion
from engram_cli.table.lock import build_lock
from engram_cli.table.store import open_table

DTYPES = {"fp8_e8m0": "scales/3/c.1.0", "int8": "scales/3/c.1.0", "fp8": "scales/3/c.0"}


@pytest.fixture(params=DTYPES)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    build(tmp_path / "t.zarr", dtype=request.param, dim=40, chunk_rows=50)
    return tmp_path / "t.zarr", DTYPES[request.param]


def test_a_flipped_bit_of_a_scale_is_named(table: tuple[Path, str]) -> None:
    path, name = table
    data = bytearray((path / name).read_bytes())
    data[0] ^= 1
    (path / name).write_bytes(data)
    open_table(path)
    (problem,) = verify_table(path).problems
    assert problem.startswith(f"{name}: its bytes have changed")


def test_lost_and_short_scales_are_found_on_opening(table: tuple[Path, str]) -> None:
    path, name = table
    (path / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match="has 0 bytes"):
        open_table(path)
    (path / name).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_table(path)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dtype": lambda meta: meta.update(data_type="int16"),
    "rows": lambda meta: meta["shape"].__setitem__(0, 7),
    "chunks": lambda meta: meta["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 3),
    "compressed": lambda meta: meta["codecs"].append({"name": "zstd"}),
    "dimensions": lambda meta: meta["shape"].append(1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_tampered_scales_are_refused(table: tuple[Path, str], edit: str) -> None:
    file = table[0] / "scales" / "3" / "zarr.json"
    document = json.loads(file.read_bytes())
    EDITS[edit](document)
    file.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="is damaged"):
        open_table(table[0])


def test_a_dtype_that_has_scales_needs_them(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", dtype="bfloat16")
    # A claim of other items than those that are there.
    tamper(tmp_path / "t.zarr", lambda a: a.update(dtype="int8"))
    with pytest.raises(ArtifactError, match="is damaged"):
        open_table(tmp_path / "t.zarr")


def test_a_conversion_takes_the_lock_too(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr")
    spec = conversion(open_table(tmp_path / "t.zarr"), "int4")
    out = tmp_path / "u.zarr"
    with build_lock(out), pytest.raises(OutputError, match="is being built by process"):
        build_store(spec, out)
    build_store(spec, out)
    assert verify_table(out).ok

"""verify reads every chunk again and lists what is wrong with each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from table.tables import build, tamper

from engram_cli.errors import ArtifactError, IncompleteError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.rows.checksum import file_checksum
from engram_cli.table.store import open_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    build(tmp_path / "t.zarr", tokens=7)
    return tmp_path / "t.zarr"


def test_a_whole_table_is_found_whole(table: Path) -> None:
    result = verify_table(table, threads=2)
    assert result.ok
    assert result.files == 7 + 7 + 1 + 1 + 1
    assert result.stored_bytes == sum(p.stat().st_size for p in table.rglob("c.*"))


@pytest.mark.parametrize("name", ["3/c.0.0", "3/c.6.0", "hits/3/c.0", "lookup/c.0"])
def test_a_flipped_bit_is_named(table: Path, name: str) -> None:
    data = bytearray((table / name).read_bytes())
    data[-1] ^= 4
    (table / name).write_bytes(data)
    if name != "lookup/c.0":
        open_table(table)  # sizes alone do not show it
    (problem,) = verify_table(table).problems
    assert problem.startswith(f"{name}: its bytes have changed")


def test_everything_wrong_is_listed(table: Path) -> None:
    (table / "0" / "c.1.0").unlink()
    (table / "0" / "c.2.0").write_bytes(b"short")
    (table / "3" / "c.4.0").unlink()
    (table / "3" / "c.4.0").mkdir()
    result = verify_table(table)
    assert not result.ok
    assert [problem.split(":")[0] for problem in result.problems] == [
        "0/c.1.0",
        "0/c.2.0",
        "3/c.4.0",
    ]
    assert "is missing" in result.problems[0]
    assert "has 5 bytes" in result.problems[1]


def test_a_lookup_of_another_vocabulary_is_found(table: Path) -> None:
    path = table / "lookup" / "c.0"
    np.roll(np.fromfile(path, dtype="<i4"), 1).tofile(path)
    entry = [path.stat().st_size, file_checksum(path)]
    tamper(table, lambda a: a["manifest"]["files"].update({"lookup/c.0": entry}))
    (problem,) = verify_table(table).problems
    assert "lookup is damaged" in problem


def test_attributes_that_cannot_be_trusted_stop_it(table: Path) -> None:
    tamper(table, lambda a: a.update(complete=False))
    with pytest.raises(IncompleteError):
        verify_table(table)
    tamper(table, lambda a: a.update(complete=True, dim=-1))
    with pytest.raises(ArtifactError):
        verify_table(table)

"""Overlays of other programs as patches of a table, and patches as overlays."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from patching.patched import artifact, opened, patch_of, table
from table.tables import raw_layout

from engram_cli.commands.patch.command import apply_patches, show_patch, stack_patches
from engram_cli.commands.patch.in_place import apply_in_place, undo_in_place
from engram_cli.commands.requests.patch import (
    ApplyPatchRequest,
    ShowPatchRequest,
    StackPatchesRequest,
)
from engram_cli.errors import EngramError, InputError, MismatchError, OutputError
from engram_cli.formats.overlay_patch import open_patch, write_overlay
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import TableStore, open_table

DIM = 64


def one_layer(path: Path, dtype: str = "float32") -> TableStore:
    """A table of one layer, as a .pleo is of."""
    spec = TableSpec(
        layout=raw_layout(), init=make_init("normal"), dim=DIM, dtype=dtype, chunk_rows=50
    )
    build_store(spec, path, threads=1)
    return open_table(path)


def pleo(path: Path, ids: list[int], values: np.ndarray) -> Path:
    """A .pleo by its definition."""
    raw = struct.pack("<4sII", b"PLEO", len(ids), values.shape[1])
    raw += np.array(ids, "<i4").tobytes() + values.astype("<f4").tobytes()
    path.write_bytes(raw)
    return path


def values_of(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, DIM)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8", "int4_b32"])
def test_a_pleo_is_a_patch_in_the_dtype_of_the_table(dtype: str, tmp_path: Path) -> None:
    base = one_layer(tmp_path / "t.zarr", dtype)
    path = pleo(tmp_path / "x.pleo", [90, 3, 17], values_of(3))
    patch = open_patch(path, base)
    assert (patch.base, patch.replaced, patch.dtype) == (None, None, dtype)
    (own,) = patch.layers.values()
    assert own.ids.tolist() == [3, 17, 90]
    apply_in_place(tmp_path / "t.zarr", patch)
    found = open_table(tmp_path / "t.zarr").vectors(None, [90, 3, 17])
    close = {"float32": 0, "bfloat16": 0.01, "fp8": 5, "int4_b32": 0.4}[dtype]
    assert np.abs(found - values_of(3)).max() <= close
    undo_in_place(tmp_path / "t.zarr")
    assert open_table(tmp_path / "t.zarr").digest == base.digest


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "fp8_e8m0"])
def test_a_plepatch_keeps_bytes_layer_and_base(dtype: str, tmp_path: Path) -> None:
    base = opened(artifact(tmp_path / "t.zarr", "table", dtype))
    patch = patch_of(base, {3: [5, 80]})
    write_overlay(tmp_path / "x.plepatch", patch, base)
    again = open_patch(tmp_path / "x.plepatch", base)
    assert again.digest == patch.digest
    assert (again.base, again.base_format) == (base.digest, "table")
    apply_in_place(tmp_path / "t.zarr", again)
    other = table(tmp_path / "other.zarr", dtype, seed=7).path
    with pytest.raises(MismatchError, match="made for another table"):
        apply_in_place(other, open_patch(tmp_path / "x.plepatch", opened(other)))


def test_a_patch_is_written_as_a_pleo_and_read_again(tmp_path: Path) -> None:
    base = one_layer(tmp_path / "t.zarr", "int8")
    patch = patch_of(base, {base.layers[0]: [2, 9]})
    write_overlay(tmp_path / "x.pleo", patch, base)
    assert open_patch(tmp_path / "x.pleo", base).layers[base.layers[0]].ids.tolist() == [2, 9]
    with pytest.raises(OutputError):
        write_overlay(tmp_path / "x.pleo", patch, base, force=True)


def test_the_commands_take_overlays(tmp_path: Path) -> None:
    """Applied to a copy, shown, stacked; written by the suffix of --out; resumed after SIGKILL."""
    one_layer(tmp_path / "t.zarr")
    path = pleo(tmp_path / "x.pleo", [4], values_of(1))
    done = apply_patches(
        ApplyPatchRequest(path=tmp_path / "t.zarr", patches=(path,), out=tmp_path / "new.zarr")
    )
    assert done.rows == 1
    shown = show_patch(ShowPatchRequest(patch=path, base=tmp_path / "t.zarr"))
    assert (shown.kind, shown.fits) == ("PLEO", "it does not say what it was made for")
    assert sum(rows for _, _, rows in shown.layers[0].by_column) == 1
    with pytest.raises(InputError, match="names no layout"):
        show_patch(ShowPatchRequest(patch=path))
    out = tmp_path / "y.plepatch"
    stack_patches(StackPatchesRequest(path=tmp_path / "t.zarr", patches=(path,), out=out))
    base = open_table(tmp_path / "t.zarr")
    patch = open_patch(out, base)
    assert patch.digest == open_patch(path, base).digest
    assert apply_in_place(tmp_path / "t.zarr", patch) is not None
    request = ApplyPatchRequest(path=tmp_path / "t.zarr", patches=(path,))
    assert not apply_patches(request).patches[0].applied


@pytest.mark.parametrize(
    ("ids", "width", "message"),
    [
        ([3, 3], DIM, "named twice"),
        ([3, -1], DIM, "has row"),
        ([3, 10**6], DIM, "has row 1,000,000"),
        ([3, 4], DIM + 1, "260 bytes a row"),
    ],
)
def test_overlays_that_are_not_of_the_table(
    ids: list[int], width: int, message: str, tmp_path: Path
) -> None:
    base = one_layer(tmp_path / "t.zarr")
    path = pleo(tmp_path / "x.pleo", ids, np.ones((len(ids), width)))
    with pytest.raises(EngramError, match=message):
        open_patch(path, base)


def test_values_that_are_not_finite_and_short_files(tmp_path: Path) -> None:
    base = one_layer(tmp_path / "t.zarr")
    path = pleo(tmp_path / "x.pleo", [1], np.full((1, DIM), np.nan))
    with pytest.raises(EngramError, match="not finite"):
        open_patch(path, base)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(EngramError, match="bytes of the file"):
        open_patch(path, base)


def test_the_layer_of_an_overlay(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr")
    path = pleo(tmp_path / "x.pleo", [1], np.ones((1, 33)))
    with pytest.raises(InputError, match="does not say of which layer") as caught:
        open_patch(path, base)
    assert "--layer" in caught.value.hint
    assert list(open_patch(path, base, 3).layers) == [3]
    write_overlay(tmp_path / "x.plepatch", patch_of(base, {3: [5]}), base)
    with pytest.raises(InputError, match="is of layer 3, not 0"):
        open_patch(tmp_path / "x.plepatch", base, 0)
    with pytest.raises(InputError, match="2 layers"):
        write_overlay(tmp_path / "y.plepatch", patch_of(base), base)

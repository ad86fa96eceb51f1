"""diff reads patches and overlays: as a side, stacked on a side; and writes what changed as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands.made import Made
from commands.test_diff import array_of, compared, edited
from formats.matrix import SOURCES
from formats.small_artifacts import pleo
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.to import convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.patches.making import make_patch
from engram_cli.patches.patch_file import read_patch, write_patch
from engram_cli.patches.patched_rows import PatchedRows
from engram_cli.patches.stack import stack_patches
from engram_cli.rows.source import ROWS, RowSource

DTYPES = ("float32", "bfloat16", "fp8", "fp8_e8m0", "int8", "int4_b32")


def patch_of(made: Made, rows: dict[int, list[int]], name: str, base: Path | None = None) -> Path:
    """A patch that turns the signs of rows."""
    source = find_artifact(base or made.table).open()
    changed = {layer: (ids, -source.vectors(layer, ids)) for layer, ids in rows.items()}
    path = made.folder / f"{name}.patch.safetensors"
    write_patch(path, make_patch(source, changed))
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_patched_rows_are_those_of_the_patch(made: Made, dtype: str) -> None:
    path = made.folder / "base.zarr"
    other = None if dtype == "float32" else dtype
    convert(ConvertRequest(source=made.table, out=path, to="table", dtype=other))
    base = find_artifact(path).open()
    ids = np.array([0, 3, 500, base.layout.layer(1).rows - 1])
    values = -base.vectors(1, ids)
    patched: RowSource = PatchedRows(
        source=base, stack=stack_patches(base, [make_patch(base, {1: (ids, values)})])
    )
    rows = base.layout.layer(1).rows
    expected = base.vectors(1, np.arange(rows))
    expected[ids] = patched.vectors(1, ids)
    assert np.allclose(expected[ids], values, rtol=0.2, atol=np.abs(values).max() / 6)
    assert np.array_equal(patched.vectors(1, np.arange(rows)[::-1]), expected[::-1])
    read = np.empty_like(expected)
    patched.read(1, 0, read)
    assert np.array_equal(read, expected)
    part = np.empty((7, base.dim or 0), dtype=np.float32)
    patched.read(1, 498, part)
    assert np.array_equal(part, expected[498:505])
    pieces = np.concatenate([piece for _, piece in patched.chunks(1)])
    assert np.array_equal(pieces, patched.lines(1, ROWS, 0, rows))
    assert patched.spans(1) == ()
    assert patched.spans(2) == base.spans(2)
    assert np.array_equal(patched.vectors(2, ids), base.vectors(2, ids))
    assert (patched.format, patched.layers, patched.digest) == (base.format, base.layers, None)


def test_a_patch_is_a_side(made: Made) -> None:
    patch = patch_of(made, {1: [7], 2: [9, 600]}, "one")
    for before, after in ((made.table, patch), (patch, made.table), (made.bundle, patch)):
        result = compared(before, after)
        assert (result.verdict, result.changed) == ("changed", 3)
        assert {(each.layer, each.table_row) for each in result.most} == {(1, 7), (2, 9), (2, 600)}
        assert all(each.cosine == pytest.approx(-1) for each in result.most)
        assert result.compared_bytes <= result.before.bytes + result.after.bytes
    assert compared(made.table, patch).after.patches == (patch,)
    assert compared(patch, made.table).before.patches == (patch,)


def test_only_blocks_with_rows_of_patches_are_read(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engram_cli.table.compare import rows

    monkeypatch.setattr(rows, "_BLOCK_BYTES", 1024)
    patch = patch_of(made, {1: [7]}, "one")
    result = compared(made.table, patch)
    assert result.changed == 1
    assert 0 < result.compared_bytes <= 2 * 1024
    copy = shutil.copytree(made.table, made.folder / "copy.zarr")
    whole = compared(made.table, copy, patch_after=(patch,))
    assert (whole.changed, whole.most) == (1, result.most)
    assert whole.compared_bytes == whole.before.bytes + whole.after.bytes


def test_stacks_are_compared_and_the_last_patch_counts(made: Made) -> None:
    one, two = patch_of(made, {1: [7, 8]}, "one"), patch_of(made, {1: [8], 2: [5]}, "two")
    after = edited(made, {1: [7, 8], 2: [5]}, lambda values: -values)
    assert compared(after, made.table, patch_after=(one, two)).verdict == "equal"
    assert compared(made.table, after, patch_before=(two, one)).verdict == "equal"
    result = compared(made.table, made.table, patch_before=(one,), patch_after=(one, two))
    assert [(each.layer, each.table_row) for each in result.most] == [(2, 5)]
    assert compared(made.table, one, patch_before=(one,)).verdict == "equal"
    assert compared(made.table, made.table, patch_before=(one,)).changed == 2


def test_an_overlay_is_a_side(made: Made) -> None:
    single = made.folder / "single.zarr"
    convert(ConvertRequest(source=made.table, out=single, to="table", layers=(1,)))
    values = array_of(single, 1)[:][[4, 9]]
    overlay = pleo(made.folder / "two.pleo", np.array([4, 9]), 2 * values)
    result = compared(single, overlay)
    assert (result.changed, [each.table_row for each in result.most]) == (
        2,
        [int(np.array([4, 9])[np.argsort(-np.linalg.norm(values, axis=1))][at]) for at in (0, 1)],
    )
    assert all(each.relative == pytest.approx(1) for each in result.most)


@pytest.mark.parametrize("dtype", [None, "int8", "bfloat16"])
def test_what_changed_is_written_as_a_patch(made: Made, dtype: str | None) -> None:
    before = made.table
    after = edited(made, {1: [3, 70], 2: range(40)}, lambda values: values * -2)
    if dtype is not None:
        paths = [made.folder / f"{name}.zarr" for name in ("one", "two")]
        for source, path in zip((before, after), paths, strict=True):
            convert(ConvertRequest(source=source, out=path, to="table", dtype=dtype, verify=False))
        before, after = paths
    out = made.folder / "changes.patch.safetensors"
    result = compared(before, after, patch=out)
    assert (result.patch, result.patch_rows) == (out, result.changed)
    assert read_patch(out).rows == result.changed
    assert compared(after, before, patch_after=(out,)).verdict == "equal"
    with pytest.raises(OutputError, match="already exists"):
        compared(before, after, patch=out)
    none = made.folder / "none.patch.safetensors"
    assert compared(before, before, patch=none).patch is None
    assert not none.exists()


def test_changes_between_dtypes_are_encoded_for_the_first_side(made: Made) -> None:
    after = edited(made, {1: [3]}, lambda values: values * -2)
    coarse, out = made.folder / "coarse.zarr", made.folder / "changes.patch.safetensors"
    convert(ConvertRequest(source=made.table, out=coarse, to="table", dtype="bfloat16"))
    assert compared(coarse, after, patch=out).patch_rows == 1
    assert compared(after, coarse, patch_after=(out,)).verdict == "within"


def test_patches_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    patch = patch_of(made, {1: [7]}, "one")
    with pytest.raises(InputError, match="are patches, which name no artifact"):
        compared(patch, patch)
    coarse = made.folder / "coarse.zarr"
    convert(ConvertRequest(source=made.table, out=coarse, to="table", dtype="bfloat16"))
    with pytest.raises(MismatchError, match="has rows of"):
        compared(coarse, patch)
    one = made.folder / "one-layer.zarr"
    convert(ConvertRequest(source=made.table, out=one, to="table", layers=(1,)))
    with pytest.raises(MismatchError, match="is of layout"):
        compared(one, patch)
    with pytest.raises(InputError):
        compared(made.table, made.table, patch_after=(tmp_path / "nothing",))


def test_the_terminal_names_patches_and_what_to_run_next(made: Made) -> None:
    patch, out = patch_of(made, {1: [7]}, "one"), made.folder / "out.patch.safetensors"
    done = CliRunner().invoke(app, ["diff", str(made.table), str(patch), "--patch", str(out)])
    assert done.exit_code == 1
    assert "one.patch.safetensors" in "".join(done.output.split())
    assert "engram patch apply" in " ".join(done.output.split())
    assert out.exists()


def test_all_overlay_formats_are_known() -> None:
    assert {each.label for each in SOURCES if each.format == "overlay"} == {
        "overlay (.pleo)",
        "overlay (.plepatch)",
    }

"""The difference of two artifacts as a patch, by function and by `engram diff --patch`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from patching.patched import ALL_DTYPES, artifact, contents, opened, patch_of, table

from engram_cli.commands.diff.command import diff
from engram_cli.commands.patch.in_place import apply_in_place
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.errors import InputError, OutputError
from engram_cli.patches import between
from engram_cli.patches.between import patch_between
from engram_cli.patches.patch_file import read_patch


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_the_patched_table_has_the_bytes_of_the_other(dtype: str, tmp_path: Path) -> None:
    table(tmp_path / "a", dtype)
    table(tmp_path / "b", dtype)
    apply_in_place(tmp_path / "b", patch_of(opened(tmp_path / "b")))
    out = tmp_path / "changes.patch.safetensors"
    result = diff(DiffRequest(before=tmp_path / "a", after=tmp_path / "b", patch=out))
    assert result.changed == 7
    patch = read_patch(out)
    assert (patch.rows, patch.description) == (7, "b instead of a")
    apply_in_place(tmp_path / "a", patch)
    rows = [
        {name: raw for name, raw in contents(tmp_path / each).items() if "zarr.json" not in name}
        for each in ("a", "b")
    ]
    assert rows[0] == rows[1]


def test_a_sign_of_zero_is_no_change_and_in_the_patch(tmp_path: Path) -> None:
    before, after = (table(tmp_path / name, init="zeros") for name in ("a", "b"))
    with (tmp_path / "b" / "0" / "c.0.0").open("r+b") as file:
        file.write(np.float32(-0.0).tobytes())
    assert patch_between(before, after, {}).layers[0].ids.tolist() == [0]


def test_rows_of_another_dtype_are_encoded_in_that_of_the_base(tmp_path: Path) -> None:
    before = table(tmp_path / "a", "float32")
    after = opened(artifact(tmp_path / "b", "bundle", "bfloat16"))
    patch = patch_between(before, after, {0: np.array([4, 9])})
    assert (patch.dtype, patch.layers[0].ids.tolist()) == ("float32", [4, 9])
    assert np.array_equal(patch.layers[0].rows, after.vectors(0, [4, 9]))


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = table(tmp_path / "a"), table(tmp_path / "b", seed=1)
    monkeypatch.setattr(between, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="more than a patch may"):
        patch_between(before, after, {0: np.arange(20)})


def test_a_foreign_file_is_not_replaced_and_nothing_is_read(tmp_path: Path) -> None:
    table(tmp_path / "a")
    (tmp_path / "p").write_text("mine")
    request = DiffRequest(
        before=tmp_path / "a", after=tmp_path / "a", patch=tmp_path / "p", force=True
    )
    with pytest.raises(OutputError, match="no patch"):
        diff(request)
    assert (tmp_path / "p").read_text() == "mine"

"""Patches applied to tables and bundles and undone: the same bytes, and nothing else touched."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patching.patched import ALL_DTYPES, artifact, contents, opened, patch_of, table
from table.tables import mapped_layout
from table.updated import built, documents

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.patch.copying import write_patched
from engram_cli.commands.patch.in_place import apply_in_place, undo_in_place
from engram_cli.commands.patch.journal import journal_folder
from engram_cli.commands.patch.target import open_target
from engram_cli.errors import (
    ArtifactError,
    EngramError,
    IncompleteError,
    InputError,
    MismatchError,
    OutputError,
)
from engram_cli.formats.base import Checks
from engram_cli.patches.patch import Patch
from engram_cli.patches.stack import stack_patches

KINDS = ("table", "bundle")
SHARED = [HealthCheck.function_scoped_fixture]


def rows_of(path: Path) -> dict[int, np.ndarray]:
    """All rows of an artifact as float32."""
    source = opened(path)
    return {i: source.vectors(i, range(source.layout.layer(i).rows)) for i in source.layers}


def require_sound(path: Path) -> None:
    found = find_artifact(path)
    checks = Checks()
    found.format.verify(found.path, checks)
    assert checks.problems == []


def expected_rows(path: Path, *patches: Patch) -> dict[int, np.ndarray]:
    """Rows of an artifact with those of patches in their places, one after another."""
    rows = rows_of(path)
    for patch in patches:
        for layer, own in patch.layers.items():
            scales = own.scales
            for at, row in enumerate(own.ids.tolist()):
                value = np.empty((1, patch.dim), np.float32)
                scale = scales if own.row_scales is None else own.row_scales[at : at + 1]
                patch.row_type.decode(own.rows[at : at + 1], scale, value)
                rows[layer][row] = value[0]
    return rows


def equal(one: dict[int, np.ndarray], two: dict[int, np.ndarray]) -> bool:
    return all(np.array_equal(one[layer], two[layer]) for layer in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_apply_and_undo(dtype: str, kind: str, tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", kind, dtype)
    before, patch = contents(tmp_path), patch_of(opened(path), description="seven rows")
    expected = expected_rows(path, patch)
    changed = apply_in_place(path, patch)
    assert changed is not None
    assert (changed.rows, changed.resumed, changed.conflicts) == (7, False, ())
    assert equal(rows_of(path), expected)
    require_sound(path)
    assert open_target(path).patches == [
        {"digest": patch.digest, "description": "seven rows", "rows": 7}
    ]
    assert apply_in_place(path, patch) is None
    undo_in_place(path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_patched_copy(kind: str, tmp_path: Path) -> None:
    path, out = artifact(tmp_path / "a", kind, "int8_b32"), tmp_path / "out"
    before, target = contents(path), open_target(path)
    one, two = patch_of(target.source), patch_of(target.source, seed=1, rows={0: [5, 6]})
    stack = stack_patches(target.source, [one, two])
    assert [(met.first, met.second, met.rows, met.row) for met in stack.conflicts] == [(0, 1, 1, 5)]
    write_patched(target, stack, out)
    assert contents(path) == before
    assert equal(rows_of(out), expected_rows(path, one, two))
    require_sound(out)
    assert [each["digest"] for each in open_target(out).patches] == [one.digest, two.digest]
    with pytest.raises(OutputError, match="exists"):
        write_patched(target, stack, out)
    with pytest.raises(InputError, match="no journal"):
        undo_in_place(out)
    # The numbers of patches in place go on after those of the copy.
    copied = contents(out)
    third = apply_in_place(out, patch_of(opened(out), {0: [5]}, 2))
    assert third is not None
    assert (third.number, third.conflicts) == (3, ())
    undo_in_place(out, "3")
    assert contents(out) == copied


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None, suppress_health_check=SHARED)
@given(data=st.data())
def test_any_patches_in_any_order(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    """Applied one by one as a stack of them; undone one by one through the same states."""
    dtype = data.draw(st.sampled_from(ALL_DTYPES))
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = artifact(folder / "a", kind, dtype)
    source = opened(path)
    patches = []
    for seed in range(data.draw(st.integers(1, 3))):
        ids = st.lists(st.integers(0, 211), min_size=1, max_size=20, unique=True)
        patches.append(patch_of(source, {0: data.draw(ids), 3: data.draw(ids)}, seed))
    stack = stack_patches(source, patches)
    write_patched(open_target(path), stack, folder / "copy")
    states, first = [], contents(path)
    for patch in patches:
        states.append(contents(folder))
        apply_in_place(path, patch, any_base=data.draw(st.booleans()))
    assert equal(rows_of(path), rows_of(folder / "copy"))
    for state in reversed(states):
        undo_in_place(path)
        assert contents(path) == {
            name[2:]: raw for name, raw in state.items() if name.startswith("a/")
        }
    assert contents(path) == first
    assert not journal_folder(path).exists()
    shutil.rmtree(folder)


def test_an_earlier_patch_is_undone_if_no_later_one_has_its_rows(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", "table", "bfloat16")
    base = opened(path)
    one, two = patch_of(base, {0: [1, 2]}), patch_of(base, {0: [3, 4]}, 1)
    three = patch_of(base, {0: [4]}, 2)
    before = contents(tmp_path)
    for patch in (one, two, three):
        apply_in_place(path, patch)
    with pytest.raises(InputError, match="patch 3 has rows of patch 2") as caught:
        undo_in_place(path, "2")
    assert "engram patch undo" in caught.value.hint
    with pytest.raises(InputError, match="no patch '9'"):
        undo_in_place(path, "9")
    assert undo_in_place(path, one.digest[7:19]).digest == one.digest
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert equal(rows_of(path), expected_rows(tmp_path / "b"))
    require_sound(path)
    undo_in_place(path)
    undo_in_place(path)
    shutil.rmtree(tmp_path / "b")
    assert contents(tmp_path) == before


def test_the_base_of_a_patch(tmp_path: Path) -> None:
    """The artifact itself, what it was under earlier patches, or other files with the same rows."""
    path = artifact(tmp_path / "a", "table", "float32")
    shutil.copytree(path, tmp_path / "copy")
    one = patch_of(opened(path))
    apply_in_place(path, one)
    follows = patch_of(opened(path), seed=1)
    sibling = patch_of(opened(tmp_path / "copy"), {0: [0, 1]}, 2)
    with pytest.raises(MismatchError, match="made for another table"):
        apply_in_place(tmp_path / "copy", follows)
    done = apply_in_place(path, follows)
    assert done is not None
    assert done.conflicts == ()
    undo_in_place(path)
    done = apply_in_place(path, sibling)
    assert done is not None
    assert [met.rows for met in done.conflicts] == [1]
    assert apply_in_place(tmp_path / "copy", follows, any_base=True) is not None
    # A bundle and a table that have the rows that the patch replaces.
    bundle = artifact(tmp_path / "bundle", "bundle", "float32")
    for_bundle = patch_of(opened(bundle), {0: [9]})
    apply_in_place(bundle, patch_of(opened(bundle), {0: [8]}))
    assert apply_in_place(bundle, for_bundle) is not None


def test_damage_is_found_before_its_digest_is_computed_again(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", "table", "float32")
    patch = patch_of(opened(path))
    with (path / "0" / "c.0.0").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    before = contents(tmp_path)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        apply_in_place(path, patch)
    assert contents(tmp_path) == before


def test_links_and_files_with_other_names_are_not_written(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", "table", "float32")
    patch = patch_of(opened(path))
    os.link(path / "0" / "c.0.0", tmp_path / "other")
    with pytest.raises(OutputError, match="other names"):
        apply_in_place(path, patch)
    os.unlink(path / "0" / "c.0.0")
    (path / "0" / "c.0.0").symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match="is a link"):
        apply_in_place(path, patch)


def test_an_artifact_that_was_changed_since_is_not_undone(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", "table", "float32")
    apply_in_place(path, patch_of(opened(path)))
    shutil.rmtree(path)
    table(path, seed=9)
    before = contents(tmp_path)
    for run in (lambda: undo_in_place(path), lambda: apply_in_place(path, patch_of(opened(path)))):
        with pytest.raises(MismatchError, match="another state"):
            run()
    assert contents(tmp_path) == before


def test_what_lies_in_the_way_of_the_journal_stays(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", "table", "float32")
    journal_folder(path).mkdir()
    (journal_folder(path) / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="in the way"):
        apply_in_place(path, patch_of(opened(path)))
    assert contents(tmp_path) == before


def test_only_tables_and_bundles_are_patched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_target(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no table or bundle") as caught:
        open_target(tmp_path)
    assert "patches=" in caught.value.hint


def test_a_half_patched_artifact_does_not_load(tmp_path: Path) -> None:
    for kind in KINDS:
        path = artifact(tmp_path / kind, kind, "float32")
        open_target(path).mark({"digest": "x"})
        with pytest.raises(IncompleteError, match="half-patched") as caught:
            opened(path)
        assert "engram patch undo" in caught.value.hint
        with pytest.raises(EngramError, match=r"half-patched, and .* is not there"):
            undo_in_place(path)


def test_kept_sums_of_a_patched_table_are_no_fault(tmp_path: Path) -> None:
    layout = mapped_layout()
    built(tmp_path / "a.zarr", layout, documents(layout.vocab_size, 20, 1), dim=16)
    layer = layout.layer_ids[0]
    apply_in_place(tmp_path / "a.zarr", patch_of(opened(tmp_path / "a.zarr"), {layer: [0, 5]}))
    found, checks = find_artifact(tmp_path / "a.zarr"), Checks(sums=True, fault_share=None)
    found.format.verify(found.path, checks)
    assert checks.problems == []
    assert any("kept sums" in line for line in checks.not_checked)

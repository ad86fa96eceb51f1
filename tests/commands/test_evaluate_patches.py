"""Patches on a memory that evaluate measures."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from attaching import Listener
from commands.evaluated import Evaluated
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.evaluate.result import EvaluateResult
from engram_cli.commands.patch.command import apply_patches
from engram_cli.commands.requests.patch import ApplyPatchRequest
from engram_cli.errors import (
    InputError,
    MismatchError,
)
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.patches.making import make_patch
from engram_cli.patches.patch_file import write_patch


@pytest.fixture(scope="module")
def patches(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two patches of the memory's rows; both have the first half of them."""
    folder = tmp_path_factory.mktemp("patches")
    bundle = read_bundle(evaluated.checkpoint / "engram")
    base, rows = bundle_rows(bundle), bundle.spec.layout.layer(1).rows
    draw = np.random.default_rng(0)
    for name, part in (("one", rows // 2), ("two", rows)):
        values = draw.standard_normal((part, bundle.spec.dim)).astype(np.float32)
        changed = {1: (np.arange(part), values)}
        write_patch(folder / f"{name}.patch.safetensors", make_patch(base, changed))
    return folder / "one.patch.safetensors", folder / "two.patch.safetensors"


@pytest.mark.parametrize("count", [1, 2])
def test_patches_give_the_losses_of_a_patched_copy(
    evaluated: Evaluated,
    evaluation: EvaluateResult,
    patches: tuple[Path, Path],
    count: int,
    tmp_path: Path,
) -> None:
    bundle, chosen = evaluated.checkpoint / "engram", patches[:count]
    before = (bundle / "engram.json").read_bytes()
    listener = Listener()
    three = evaluated.run(patch=chosen, listener=listener)
    copy = tmp_path / "copy"
    apply_patches(ApplyPatchRequest(path=bundle, patches=chosen, out=copy))
    assert three.patched == evaluated.run(bundle=copy).memory != evaluation.memory
    assert (three.bare, three.memory, three.gates) == (
        evaluation.bare,
        evaluation.memory,
        evaluation.gates,
    )
    assert (bundle / "engram.json").read_bytes() == before
    assert [(own.variant, own.than) for own in three.differences] == [
        ("memory", "bare"), ("patched", "memory")
    ]  # fmt: skip
    parts = next(own for own in three.breakdowns if own.name == "before").parts
    assert [own.variant for own in parts[0].differences] == ["memory", "patched"]
    assert three.patches == chosen
    assert any("patch 2 wins" in note for note in listener.notes) is (count == 2)


def test_patches_on_rows_on_disk(evaluated: Evaluated, patches: tuple[Path, Path]) -> None:
    near, far = (evaluated.run(patch=patches, placement=each) for each in ("hbm", "disk"))
    assert far.patched == pytest.approx(near.patched, abs=1e-6)
    assert far.memory == pytest.approx(near.memory, abs=1e-6)


def test_patches_that_do_not_fit(
    evaluated: Evaluated, patches: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    two = ApplyPatchRequest(path=evaluated.checkpoint / "engram", patches=patches[1:], out=copy)
    apply_patches(two)
    with pytest.raises(MismatchError, match="--any-base"):
        evaluated.run(bundle=copy, patch=patches[:1])
    other = evaluated.run(bundle=copy, patch=patches[:1], any_base=True)
    assert other.patched != other.memory
    with pytest.raises(InputError, match="--any-base without --patch"):
        evaluated.run(any_base=True)
    alone = tmp_path / "ckpt"
    shutil.copytree(evaluated.checkpoint, alone, ignore=shutil.ignore_patterns("engram"))
    with pytest.raises(InputError, match="--patch without a memory"):
        evaluated.run(checkpoint=alone, patch=patches[:1])


def test_the_command_shows_what_patches_do(
    evaluated: Evaluated, patches: tuple[Path, Path]
) -> None:
    arguments = [
        "evaluate",
        str(evaluated.checkpoint),
        str(evaluated.texts),
        "--patch",
        str(patches[0]),
    ]
    done = CliRunner().invoke(app, [*arguments, "--patch", str(patches[1])])
    assert done.exit_code == 0, done.output
    assert "memory + patches − memory" in done.output
    assert re.search(r"patch 2 .*two\.patch\.safetensors", done.output)
    assert "the memory with patches and the memory" in " ".join(done.output.split())  # headline

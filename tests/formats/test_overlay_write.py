"""convert --to pleo and plepatch: a range of rows, or the rows that somebody edited."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints, small_artifacts
from formats.converted import converted, stored, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.formats.overlay import Overlay
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.compress import CompressedVocab

EDITED = [0, 7, 8, 1500, 1663]  # rows that lie apart, and with --rows close together


def overlay(path: Path) -> Overlay:
    source = find_artifact(path).open()
    assert isinstance(source, Overlay)
    assert verify(VerifyRequest(path=path, folder=path.parent)).ok
    return source


def pieces(path: Path) -> np.ndarray:
    found = list(overlay(path).pieces())
    assert all(piece is not None for piece in found)
    return np.concatenate(found)


def edited_qwen(folder: Path, dtype: str = "bfloat16") -> tuple[checkpoints.Written, Path]:
    """A checkpoint, and a copy of it in which some rows were edited."""
    made = checkpoints.qwen_ple(folder / "base", dtype=dtype)
    other = checkpoints.qwen_ple(folder / "edited", dtype=dtype)
    converted(made.path, "engramdb", folder / "store")
    shard = folder / "store" / "shard_000.bin"
    raw = np.fromfile(shard, np.uint8).reshape(len(other.rows[2]), -1)
    raw[EDITED, 4] ^= 3
    raw.tofile(shard)
    return made, folder / "store"


@pytest.mark.parametrize("kind", ["pleo", "plepatch"])
def test_edited_rows(tmp_path: Path, kind: str) -> None:
    base, edited = edited_qwen(tmp_path)
    out = tmp_path / f"edit.{kind}"
    planned = converted(edited, kind, out, patch=base.path, dry_run=True)
    assert not out.exists()
    result = converted(edited, kind, out, patch=base.path)
    assert (result.verified, result.size) == (True, planned.size)
    assert out.stat().st_size == result.size
    assert result.notes == ("5 of 2,176 rows of layer 2",)
    assert overlay(out).row_numbers().tolist() == EDITED
    expected = find_artifact(edited).open().vectors(2, EDITED)
    assert np.array_equal(pieces(out), expected)
    assert not np.array_equal(expected, find_artifact(base.path).open().vectors(2, EDITED))


def test_a_range_of_rows(tmp_path: Path) -> None:
    base, edited = edited_qwen(tmp_path)
    converted(edited, "pleo", tmp_path / "a.pleo", rows=(5, 1000))
    assert overlay(tmp_path / "a.pleo").row_numbers().tolist() == list(range(5, 1000))
    converted(edited, "pleo", tmp_path / "b.pleo", rows=(5, 1000), patch=base.path)
    assert overlay(tmp_path / "b.pleo").row_numbers().tolist() == [7, 8]
    expected = find_artifact(edited).open().vectors(2, np.arange(5, 1000))
    assert np.array_equal(pieces(tmp_path / "a.pleo"), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_a_plepatch_holds_rows_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q")
    out = tmp_path / "a.plepatch"
    converted(made.path, "plepatch", out, rows=(3, 90), dtype=dtype)
    source = overlay(out)
    assert (source.stored_as, source.width) == (dtype, 160)
    assert source.tensor == "per_layer_token_embd.weight"
    assert source.manifest is not None
    assert source.manifest["base"] is None
    expected = find_artifact(made.path).open().vectors(2, np.arange(3, 90))
    if dtype == "q8_0":
        assert np.allclose(pieces(out), expected, atol=0.05)
    else:
        assert np.array_equal(pieces(out), expected)


def test_rows_of_264_bytes(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    """V4.1's rows are bytes to ggml: items, then scales, as in the base tensor."""
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    base = tmp_path / "base.gguf"
    base.write_bytes(made.path.read_bytes())
    last = made.layout.layer(3).rows - 1
    (span,) = find_artifact(base).open().spans(3, SCALES)
    raw = bytearray(made.path.read_bytes())
    raw[span.begin + last * 264 + 7] ^= 1  # its last scale
    made.path.write_bytes(raw)
    out = tmp_path / "a.plepatch"
    with pytest.raises(InputError, match="rows of 2 layers, and an overlay is of one"):
        converted(made.path, "plepatch", out, patch=base)
    converted(made.path, "plepatch", out, patch=base, layers=(3,))
    source = overlay(out)
    assert source.row_numbers().tolist() == [last]
    assert (source.tensor, source.stored_as, source.width) == (
        "blk.3.engram_embd.weight", "int8", 264,
    )  # fmt: skip
    opened = find_artifact(made.path).open()
    row = np.concatenate([stored(opened, 3, part)[-1].view(np.uint8) for part in (ROWS, SCALES)])
    assert out.read_bytes()[-264:] == row.tobytes()
    assert source.manifest is not None
    assert source.manifest["base"]["format"] == "gguf"
    assert source.manifest["base"]["digest"].startswith("sampled sha256:")


def test_bases_of_other_dtypes_are_compared_as_values(tmp_path: Path) -> None:
    base, edited = edited_qwen(tmp_path)
    table(edited, tmp_path / "t.zarr", dtype="float32")
    converted(tmp_path / "t.zarr", "pleo", tmp_path / "a.pleo", patch=base.path)
    assert overlay(tmp_path / "a.pleo").row_numbers().tolist() == EDITED


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    base, edited = edited_qwen(tmp_path)
    for name in ("a", "b"):
        converted(edited, "plepatch", tmp_path / f"{name}.plepatch", patch=base.path)
    raw = [(tmp_path / f"{name}.plepatch").read_bytes() for name in ("a", "b")]
    assert raw[0] == raw[1]
    manifest = json.loads(raw[0][128 : 128 + int.from_bytes(raw[0][40:48], "little")])
    assert (manifest["format"], manifest["layer"]) == ("ple-overlay-v1", 2)
    with pytest.raises(OutputError, match="already exists"):
        converted(edited, "plepatch", tmp_path / "a.plepatch", patch=base.path)
    converted(edited, "plepatch", tmp_path / "a.plepatch", rows=(0, 3), force=True)
    assert overlay(tmp_path / "a.plepatch").count == 3


@pytest.mark.parametrize(
    ("to", "options", "match"),
    [
        ("pleo", {}, "holds some rows of a table"),
        ("pleo", {"rows": (0, 2177)}, "goes past the 2,176 rows"),
        ("pleo", {"rows": (0, 2), "layers": (3,)}, "has no rows of layer 3"),
        ("plepatch", {"rows": (0, 2), "dtype": "int4"}, "does not hold rows of int4"),
    ],
)
def test_what_an_overlay_cannot_hold(
    tmp_path: Path, to: str, options: dict[str, Any], match: str
) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q")
    out = tmp_path / f"x.{to}"
    with pytest.raises(InputError, match=match):
        converted(made.path, to, out, **options)
    with pytest.raises(InputError, match="no row of"):
        converted(made.path, to, out, patch=made.path)
    with pytest.raises(InputError, match="does not end in"):
        converted(made.path, to, tmp_path / "x.bin", rows=(0, 2))
    assert not out.exists()


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, edited = edited_qwen(tmp_path)
    other = small_artifacts.store(tmp_path / "other").path
    with pytest.raises(MismatchError, match=r"is no edit of .*: other dim"):
        converted(edited, "pleo", tmp_path / "x.pleo", patch=other)
    theirs = small_artifacts.pleo(tmp_path / "x.pleo", np.array([1]), np.ones((1, 160)))
    with pytest.raises(OutputError, match="who wrote it"):
        converted(edited, "pleo", theirs, patch=base.path, force=True)


def test_an_overlay_as_the_other_kind(tmp_path: Path) -> None:
    """Rows of a ggml type become float32; what is not decoded, or would be lost, is refused."""
    numbers = np.array([7, 2**31 - 1, 3])
    q8_0 = np.random.default_rng(0).integers(0, 60, (3, 34), dtype=np.uint8)
    first = small_artifacts.plepatch(tmp_path / "a.plepatch", numbers, q8_0, dim=32, kind=8)
    converted(first, "pleo", tmp_path / "b.pleo")
    converted(tmp_path / "b.pleo", "plepatch", tmp_path / "c.plepatch")
    overlays: list[Any] = [
        find_artifact(tmp_path / n).open() for n in ("a.plepatch", "b.pleo", "c.plepatch")
    ]
    for overlay in overlays:
        assert overlay.row_numbers().tolist() == numbers.tolist()
        assert np.array_equal(
            np.concatenate(list(overlay.pieces())), np.concatenate(list(overlays[0].pieces()))
        )
    assert overlays[2].tensor == "per_layer_token_embd.weight"
    raw = small_artifacts.plepatch(tmp_path / "d.plepatch", numbers, q8_0, dim=34, kind=24)
    with pytest.raises(InputError, match="int8, which are not decoded"):
        converted(raw, "pleo", tmp_path / "e.pleo")
    with pytest.raises(InputError, match="has some rows already"):
        converted(first, "pleo", tmp_path / "e.pleo", rows=(0, 2))
    far = small_artifacts.plepatch(tmp_path / "f.plepatch", numbers + 2**31, q8_0, dim=32, kind=8)
    with pytest.raises(InputError, match="does not fit the int32"):
        converted(far, "pleo", tmp_path / "e.pleo")
    with pytest.raises(OutputError, match="already exists"):
        converted(first, "pleo", tmp_path / "b.pleo")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.sets(st.integers(0, 2175), min_size=1, max_size=40),
    kind=st.sampled_from(["pleo", "plepatch"]),
)
def test_any_edits(base: tuple[Path, Path], rows: set[int], kind: str) -> None:
    """Exactly the edited rows are written, with the values they have now."""
    before, edited = base
    shard = edited / "shard_000.bin"
    whole = shard.read_bytes()
    raw = np.frombuffer(whole, np.uint8).reshape(2176, -1).copy()
    raw[sorted(rows), 9] ^= 1
    raw.tofile(shard)
    out = edited.parent / f"{len(os.listdir(edited.parent))}.{kind}"
    try:
        converted(edited, kind, out, patch=before)
        assert overlay(out).row_numbers().tolist() == sorted(rows)
        values = find_artifact(edited).open().vectors(2, sorted(rows))
        assert np.array_equal(pieces(out), values)
    finally:
        shard.write_bytes(whole)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and a store of the same rows."""
    folder = tmp_path_factory.mktemp("edits")
    made = checkpoints.qwen_ple(folder / "base")
    converted(made.path, "engramdb", folder / "store")
    return made.path, folder / "store"

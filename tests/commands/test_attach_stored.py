"""attach of quantised tables, copied or referred to: the rows are the table's, to the bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attaching import LLAMA, build, configure, request
from formats.bundles import put
from patching.patched import patch_of
from safetensors.torch import load_file
from table.tables import tamper

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.attach.command import attach_checkpoint
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.patch.command import apply_patches, undo_patch
from engram_cli.commands.requests.patch import ApplyPatchRequest, UndoPatchRequest
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.files import canonical_json
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.patches.patch_file import write_patch
from engram_cli.rows import DTYPES
from engram_cli.table.inits import make_init
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab

QUANTISED = tuple(name for name in DTYPES if DTYPES.load(name).quantised)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Any:
    """A table of each quantised dtype, and one of floats."""
    folder = tmp_path_factory.mktemp("tables")
    names = (*QUANTISED, "bfloat16")
    return {name: build(folder / f"{name}.zarr", small_vocab, dtype=name) for name in names}


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer_file: Path) -> Path:
    folder = tmp_path / "here" / "ckpt"
    folder.mkdir(parents=True)
    shutil.copy(tokenizer_file, folder)
    configure(folder, LLAMA)
    return folder


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dtype", [*QUANTISED, "bfloat16"])
def test_stored_rows_are_the_tables(
    checkpoint: Path, tables: dict[str, Path], dtype: str, reference: bool
) -> None:
    table = open_table(tables[dtype])
    result = attach_checkpoint(request(checkpoint, table.path, reference=reference))
    bundle = read_bundle(result.out)
    assert (bundle.spec.dtype, bundle.table) == (dtype, table.path if reference else None)
    for layer in bundle.spec.layers:
        stored = np.concatenate([rows for _, rows in table.chunks(layer)])
        assert np.array_equal(np.concatenate(bundle.maps(layer, ROWS)), stored)
        if dtype in QUANTISED:
            scales = np.concatenate([scales for _, scales in table.chunks(layer, SCALES)])
            assert np.array_equal(np.concatenate(bundle.maps(layer, SCALES)), scales)
    at = np.array([0, 99, 100, 101, 5])
    vectors = find_artifact(result.out).open().vectors
    assert vectors is not None
    assert np.array_equal(vectors(2, at), table.rows(2, at))
    own = sum(path.stat().st_size for path in result.out.glob("[rs]*.safetensors"))
    assert (own == 0) == reference
    assert reference or own >= result.cost.table_bytes
    found = inspect(InspectRequest(path=result.out, threads=1))
    assert any(column.rms for column in found.columns)
    checked = verify(VerifyRequest(path=result.out, threads=1))
    assert checked.problems == ()
    assert ("the table" in checked.checked) == reference


def test_the_library_reads_quantised_shards(checkpoint: Path, tables: dict[str, Path]) -> None:
    out = attach_checkpoint(request(checkpoint, tables["fp8_e8m0"])).out
    rows = load_file(out / "rows-00001-of-00002.safetensors")["layers.1.rows"]
    scales = load_file(out / "scales-00001-of-00002.safetensors")["layers.1.scales"]
    vectors = open_table(tables["fp8_e8m0"]).rows(1, np.arange(len(rows)))
    assert np.array_equal((rows.float() * scales.float()).numpy(), vectors)


def test_where_a_reference_points(checkpoint: Path, tables: dict[str, Path]) -> None:
    far = attach_checkpoint(request(checkpoint, tables["int8"], reference=True))
    assert far.reference == str(tables["int8"].resolve())
    near = shutil.copytree(tables["int8"], checkpoint.parent / "t.zarr")
    beside = attach_checkpoint(request(checkpoint, near, reference=True, force=True))
    assert beside.reference == "../../t.zarr"
    moved = checkpoint.parent.rename(checkpoint.parent.with_name("there"))
    assert read_bundle(moved / "ckpt" / "engram").table == moved / "t.zarr"
    link = moved.parent / "link"
    link.symlink_to(moved / "ckpt" / "engram")
    assert read_bundle(link).table == moved / "t.zarr"


def test_a_reference_to_zeros_is_an_identity_that_can_learn(
    checkpoint: Path, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    table = build(tmp_path / "zeros.zarr", small_vocab, init=make_init("zeros"), dtype="int4")
    result = attach_checkpoint(request(checkpoint, table, reference=True))
    assert (result.zero_rows, result.identity) == ((1, 2), True)


@pytest.fixture
def referring(checkpoint: Path, tables: dict[str, Path]) -> Path:
    """A bundle that refers to a table of its own, `t.zarr` beside the checkpoint."""
    near = shutil.copytree(tables["int8_b32"], checkpoint.parent / "t.zarr")
    return attach_checkpoint(request(checkpoint, near, reference=True)).out


def near_table(bundle: Path) -> Path:
    return bundle.parent.parent / "t.zarr"


def test_a_table_that_is_gone_or_another(referring: Path, tables: dict[str, Path]) -> None:
    table = near_table(referring)
    gone = table.rename(table.with_name("elsewhere.zarr"))
    with pytest.raises(InputError, match="which is not there"):
        read_bundle(referring)
    assert "which is not there" in verify(VerifyRequest(path=referring)).problems[0]
    shutil.copytree(tables["int8"], table)
    with pytest.raises(MismatchError, match="its digest is"):
        read_bundle(referring)
    shutil.rmtree(table)
    gone.rename(table)
    tamper(table, lambda a: a.update(init={"name": "normal", "parameters": {"seed": 9}}))
    with pytest.raises(MismatchError, match="its digest is"):
        read_bundle(referring)
    tamper(table, lambda a: a.update(complete=False))
    with pytest.raises(ArtifactError, match="no finished table"):
        read_bundle(referring)


def without_stamps(bundle: Path) -> None:
    """Make a bundle one of a version that recorded no times of change."""
    document = json.loads((bundle / "engram.json").read_text())
    assert set(document["table"].pop("stamps")) == set(document["table"]["files"])
    (bundle / "engram.json").write_bytes(canonical_json(document))


def test_bytes_behind_the_first_64_kib_change_the_time(
    checkpoint: Path, small_vocab: CompressedVocab
) -> None:
    table = build(checkpoint.parent / "t.zarr", small_vocab, dtype="float32", dim=256)
    bundle = attach_checkpoint(request(checkpoint, table, reference=True)).out
    chunk = max(table.rglob("c.0.0"), key=lambda path: path.stat().st_size)
    assert chunk.stat().st_size > 2**16 + 8
    with chunk.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-8, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(MismatchError, match="it was written to at another time"):
        read_bundle(bundle)
    attach_checkpoint(request(checkpoint, table, reference=True, force=True))
    read_bundle(bundle)


def test_a_table_that_was_patched(referring: Path, tables: dict[str, Path]) -> None:
    """Its bytes are others, so attaching again is needed; undone, its times still are."""
    table = near_table(referring)
    rows = open_table(table)
    patch = referring.parent / "p.patch.safetensors"
    write_patch(patch, patch_of(rows, {2: [3]}))
    apply_patches(ApplyPatchRequest(path=table, patches=(patch,)))
    with pytest.raises(MismatchError, match="its digest is") as refused:
        read_bundle(referring)
    assert "engram attach --reference --force" in refused.value.hint
    undo_patch(UndoPatchRequest(path=table))
    with pytest.raises(MismatchError, match="was changed since the bundle"):
        read_bundle(referring)


def test_a_table_with_a_chunk_that_is_cut_is_not_referred_to(
    checkpoint: Path, tables: dict[str, Path]
) -> None:
    table = shutil.copytree(tables["int8"], checkpoint.parent / "t.zarr")
    chunk = table / "scales" / "2" / "c.1.0"
    os.truncate(chunk, chunk.stat().st_size - 1)
    with pytest.raises(ArtifactError, match=rf"{chunk} has .* bytes, not"):
        attach_checkpoint(request(checkpoint, table, reference=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda stamps, name: stamps.pop(name),
        lambda stamps, name: stamps[name].update(bytes=1),
        lambda stamps, name: stamps[name].update(changed="soon"),
        lambda stamps, name: stamps[name].update(head=None),
        lambda stamps, name: stamps.update({"../../x": stamps[name]}),
    ],
)
def test_stamps_that_cannot_be(referring: Path, change: Any) -> None:
    document = json.loads((referring / "engram.json").read_text())
    stamps = document["table"]["stamps"]
    change(stamps, min(stamps))
    (referring / "engram.json").write_bytes(canonical_json(document))
    with pytest.raises(ArtifactError, match="is not a bundle"):
        read_bundle(referring)


def test_chunks_that_changed(referring: Path) -> None:
    chunk = near_table(referring) / "scales" / "2" / "c.1.0"
    raw = bytearray(chunk.read_bytes())
    raw[3] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(MismatchError, match=rf"^{chunk} was changed since the bundle") as refused:
        read_bundle(referring)
    assert refused.value.message.endswith("its first 64 KiB are others")
    assert f"engram verify {near_table(referring)}; then attach it again" in refused.value.hint
    found = verify(VerifyRequest(path=referring, threads=1))
    assert found.problems == (refused.value.message,)
    assert found.not_checked == (f"the rows: {refused.value.hint}",)
    (problem,) = verify(VerifyRequest(path=near_table(referring), threads=1)).problems
    assert problem.startswith("scales/2/c.1.0: its bytes have changed")
    without_stamps(referring)
    read_bundle(referring)  # sizes and digests are checked, rows are not read
    (problem,) = verify(VerifyRequest(path=referring, threads=1)).problems
    assert problem.startswith("the table's scales/2/c.1.0: its bytes have changed")
    with pytest.raises(InputError, match="not checked here") as caught:
        read_bundle(referring, verify=True)
    assert "engram verify" in caught.value.hint
    os.truncate(chunk, len(raw) - 1)
    with pytest.raises(ArtifactError, match=rf"{len(raw) - 1} bytes, not {len(raw)}"):
        read_bundle(referring)
    chunk.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_bundle(referring)


@pytest.mark.parametrize(
    "change",
    [
        put("table", []),
        put("table", "path", 7),
        put("table", "path", ""),
        put("table", "digest", None),
        put("table", "files", {}),
        put("table", "files", "1/c.0.0", [10**30, "0"]),
        put("table", "files", "1/c.0.0", [1, "0"]),
        put("table", "files", "1/c.0.0", [3, "0"]),
        put("table", "files", "1/c.0.0", ["800", "0"]),
        put("table", "files", "1/c.1.0", [0, "0"]),
        put("table", "files", "../../etc/passwd", [800, "0"]),
        put("rows", "dtype", "int8"),
        put("rows", "dtype", "float32"),
        put("rows", "dim", 16),
    ],
)
def test_a_reference_that_cannot_be(referring: Path, change: Any) -> None:
    document = json.loads((referring / "engram.json").read_bytes())
    change(document)
    (referring / "engram.json").write_bytes(canonical_json(document))
    with pytest.raises(ArtifactError, match="is not a bundle"):
        read_bundle(referring)


def test_other_checksums_than_the_tables(referring: Path) -> None:
    document = json.loads((referring / "engram.json").read_bytes())
    document["table"]["files"]["1/c.0.0"][1] = "0" * 16
    (referring / "engram.json").write_bytes(canonical_json(document))
    with pytest.raises(MismatchError, match=r"disagree on 1/c\.0\.0"):
        read_bundle(referring)


def test_the_room_that_is_needed(
    checkpoint: Path, tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = attach_checkpoint(request(checkpoint, tables["fp8"], dry_run=True))
    assert plan.fits
    assert plan.cost.disk_bytes > plan.cost.table_bytes
    refers = attach_checkpoint(request(checkpoint, tables["fp8"], dry_run=True, reference=True))
    assert plan.cost.disk_bytes - refers.cost.disk_bytes == plan.cost.table_bytes
    free = plan.cost.disk_bytes - 1
    monkeypatch.setattr("engram_cli.commands.attach.command.free_bytes", lambda out: free)
    assert not attach_checkpoint(request(checkpoint, tables["fp8"], dry_run=True)).fits
    with pytest.raises(OutputError, match="are free") as caught:
        attach_checkpoint(request(checkpoint, tables["fp8"]))
    assert "--reference" in caught.value.hint
    attach_checkpoint(request(checkpoint, tables["fp8"], reference=True))

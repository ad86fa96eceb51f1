"""Patch files: what is written is read again, and what cannot be true is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patching.patched import ALL_DTYPES, patch_of, same, table
from safetensors import safe_open
from safetensors.numpy import load_file

from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError, OutputError
from engram_cli.patches.making import make_patch, stored_patch
from engram_cli.patches.patch import LayerPatch, Patch
from engram_cli.patches.patch_file import read_patch, write_patch
from engram_cli.patches.replaced import read_rows, replaced_digest
from engram_cli.rows import DTYPES


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_what_is_written_is_read_again(dtype: str, tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr", dtype)
    patch = patch_of(base, description="two facts", facts={"made": "here"})
    write_patch(tmp_path / "p.patch.safetensors", patch)
    again = read_patch(tmp_path / "p.patch.safetensors")
    assert same(patch, again)
    assert again.rows == 7
    assert (again.base, again.base_format) == (base.digest, "table")
    again.require_fits(base)


def test_the_safetensors_library_reads_a_patch(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr", "int8")
    patch = patch_of(base)
    path = tmp_path / "p.patch.safetensors"
    write_patch(path, patch)
    held = load_file(path)
    for layer, own in patch.layers.items():
        assert np.array_equal(held[f"layers.{layer}.ids"], own.ids)
        assert np.array_equal(held[f"layers.{layer}.rows"], own.rows)
        assert np.array_equal(held[f"layers.{layer}.scales"], own.scales)
    with safe_open(path, "numpy") as opened:
        assert opened.metadata()["fingerprint"] == base.layout.fingerprint


def test_a_patch_has_the_rows_that_change_and_the_digest_of_what_they_replace(
    tmp_path: Path,
) -> None:
    base = table(tmp_path / "t.zarr", "bfloat16")
    values = base.vectors(0, [9, 3, 4])
    values[1] = 1.5
    patch = make_patch(base, {0: ([9, 3, 4], values), 3: ([1], base.vectors(3, [1]))})
    assert patch.layers[0].ids.tolist() == [3]
    assert list(patch.layers) == [0]
    assert patch.replaced == replaced_digest({0: read_rows(base, 0, np.array([3]))})
    assert (patch.layers[0].rows == 0x3FC0).all()


def test_an_empty_patch_is_one(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr")
    patch = make_patch(base, {0: ([2], base.vectors(0, [2]))})
    write_patch(tmp_path / "p", patch)
    assert read_patch(tmp_path / "p").rows == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "fp8", "int4_b32", "fp8_e8m0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(dtype: str, bad: float, tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr", dtype)
    values = base.vectors(0, [2, 4])
    values[1, 3] = bad
    with pytest.raises(InputError, match="row 4 has a value that is not finite"):
        make_patch(base, {0: ([2, 4], values)})


def test_a_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr", "float16")
    with pytest.raises(InputError, match="not finite"):
        make_patch(base, {0: ([1], np.full((1, base.dim), 1e6, np.float32))})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 3], "named twice"),
        ([5, -1], "below 0"),
        ([0, 212], "row 212 of layer 0, which has 212 rows"),
        ([[1, 2]], "row numbers"),
    ],
)
def test_rows_that_the_base_has_not(ids: Any, message: str, tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr")
    with pytest.raises(EngramError, match=message):
        make_patch(base, {0: (ids, np.zeros((len(ids), base.dim), np.float32))})


def test_stored_rows_under_another_scale_of_the_layer_are_no_rows_of_the_base(
    tmp_path: Path,
) -> None:
    base = table(tmp_path / "t.zarr", "fp8")
    own = read_rows(base, 0, np.array([4, 6]))
    other = LayerPatch(ids=own.ids, rows=own.rows, scales=np.array([2.0], np.float32))
    with pytest.raises(MismatchError, match="scale"):
        stored_patch(base, {0: other})


def test_a_patch_of_another_layout_or_dtype_does_not_fit(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr")
    patch = patch_of(base)
    with pytest.raises(MismatchError, match="layout"):
        replace(patch, fingerprint="sha256:" + "0" * 64).require_fits(base)
    with pytest.raises(MismatchError, match="bfloat16"):
        patch_of(table(tmp_path / "b.zarr", "bfloat16")).require_fits(base)


def test_only_a_patch_is_replaced(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr")
    one, two = patch_of(base), patch_of(base, seed=1)
    path = tmp_path / "p"
    write_patch(path, one)
    with pytest.raises(OutputError, match="exists"):
        write_patch(path, two)
    write_patch(path, two, force=True)
    assert same(read_patch(path), two)
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="no patch"):
        write_patch(path, one, force=True)


def test_a_folder_with_one_patch_names_it(tmp_path: Path) -> None:
    base = table(tmp_path / "t.zarr")
    folder = tmp_path / "repository"
    folder.mkdir()
    with pytest.raises(InputError, match="is a folder without a patch"):
        read_patch(folder)
    write_patch(folder / "a.patch.safetensors", patch_of(base))
    assert read_patch(folder).rows == 7


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a patch."""
    folder = tmp_path_factory.mktemp("patch")
    write_patch(folder / "p", patch_of(table(folder / "t.zarr", "int8")))
    return (folder / "p").read_bytes()


def header_of(raw: bytes) -> dict[str, Any]:
    size = int.from_bytes(raw[:8], "little")
    return dict(json.loads(raw[8 : 8 + size]))


def with_header(raw: bytes, header: Any) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    text = json.dumps(header).encode().ljust(size)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def put(*path: Any) -> Callable[[Any], None]:
    *keys, last, value = path

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change


META = "__metadata__"
SHARED = [HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (put("layers.0.ids", "shape", [2**40]), ArtifactError, "shape"),
        (put("layers.0.rows", "data_offsets", [0, 2**50]), ArtifactError, "bytes"),
        (put("layers.0.ids", "dtype", "I32"), ArtifactError, "bytes|ids"),
        (put(META, "version", "2"), ArtifactError, "version 2"),
        (put(META, "format", "pt"), InputError, "no patch"),
        (put(META, "dim", "34"), ArtifactError, "rows are"),
        (put(META, "dim", "1e9"), ArtifactError, "dim"),
        (put(META, "dim", "9999999"), ArtifactError, "patch of 9999999"),
        (put(META, "dtype", "int8_b32"), ArtifactError, "scales"),
        (put(META, "dtype", "float8"), ArtifactError, "float8"),
        (put(META, "facts", "[1]"), ArtifactError, "facts"),
        (put(META, "facts", '{"a": 1}'), ArtifactError, "facts"),
        (put(META, "fingerprint", 7), ArtifactError, "texts"),
        (lambda header: header[META].pop("fingerprint"), ArtifactError, "no fingerprint"),
        (lambda header: header.pop(META), InputError, "no patch"),
    ],
)
def test_a_header_that_lies_is_refused(
    change: Callable[[Any], None], error: Any, message: str, written: bytes, tmp_path: Path
) -> None:
    header = header_of(written)
    change(header)
    (tmp_path / "p").write_bytes(with_header(written, header))
    with pytest.raises(error, match=message):
        read_patch(tmp_path / "p")


def renamed(old: str, new: str) -> Callable[[Any], None]:
    return lambda header: header.update({new: header.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("layers.0.scales", "layers.0.other"), "tensor 'layers.0.other'"),
        (renamed("layers.0.scales", "layers.9.scales"), "layer 0 has no scales"),
        (renamed("layers.0.ids", "layers.00.ids"), "tensor 'layers.00.ids'"),
    ],
)
def test_tensors_that_are_no_patch(
    change: Callable[[Any], None], message: str, written: bytes, tmp_path: Path
) -> None:
    header = header_of(written)
    change(header)
    (tmp_path / "p").write_bytes(with_header(written, header))
    with pytest.raises(ArtifactError, match=message):
        read_patch(tmp_path / "p")


@pytest.mark.parametrize("ids", [[0, 5, 31, 105, 32], [0, 5, 5, 32, 105], [-1, 5, 31, 32, 105]])
def test_row_numbers_out_of_order_are_refused(
    ids: list[int], written: bytes, tmp_path: Path
) -> None:
    place = header_of(written)["layers.0.ids"]["data_offsets"][0]
    begin = 8 + int.from_bytes(written[:8], "little") + place
    raw = np.array(ids, dtype="<i8").tobytes()
    (tmp_path / "p").write_bytes(written[:begin] + raw + written[begin + len(raw) :])
    with pytest.raises(ArtifactError, match="not ascending"):
        read_patch(tmp_path / "p")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_is_another_patch(
    data: st.DataObject, written: bytes, tmp_path: Path
) -> None:
    raw = bytearray(written)
    size = 8 + int.from_bytes(written[:8], "little")
    text_end = len(written[:size].rstrip())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, text_end - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw) - 1, 7, 100, size]))
    (tmp_path / "p").write_bytes(raw[:cut])
    try:
        found = read_patch(tmp_path / "p")
    except EngramError:
        return
    assert isinstance(found, Patch)
    assert found.rows <= len(raw) // 8
    assert DTYPES.load(found.dtype).name == found.dtype


@pytest.mark.parametrize("part", ["ids", "rows", "scales"])
def test_a_flipped_byte_of_any_tensor_is_found(part: str, written: bytes, tmp_path: Path) -> None:
    header = header_of(written)
    begin = 8 + int.from_bytes(written[:8], "little")
    raw = bytearray(written)
    raw[begin + header[f"layers.3.{part}"]["data_offsets"][1] - 8] ^= 1
    path = tmp_path / "p"
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"is damaged: its digest is [0-9a-f]{12}, "):
        read_patch(path)


def test_a_patch_states_its_digest(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(written)
    patch = read_patch(path)
    assert patch.stated == patch.digest == header_of(written)[META]["digest"]
    held = load_file(path)
    texts = f'{{"dim":{patch.dim},"dtype":"int8","fingerprint":"{patch.fingerprint}"}}'
    digest = hashlib.sha256(f"engram patch 1\n{texts}".encode())
    for layer in (0, 3):
        digest.update(f"[{layer},{len(held[f'layers.{layer}.ids'])}]".encode())
        for part in ("ids", "rows", "scales"):
            digest.update(held[f"layers.{layer}.{part}"].tobytes())
    assert patch.stated == f"sha256:{digest.hexdigest()}"


def test_a_patch_without_a_digest_is_read(written: bytes, tmp_path: Path) -> None:
    """As those of versions before, and of other programs."""
    header = header_of(written)
    digest = header[META].pop("digest")
    path = tmp_path / "p"
    path.write_bytes(with_header(written, header))
    patch = read_patch(path)
    assert (patch.stated, patch.digest) == (None, digest)

"""safetensors files written by hand: the library reads them, and damaged ones are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from engram_cli.errors import ArtifactError
from engram_cli.rows import safetensors
from engram_cli.rows.safetensors import (
    ALIGNMENT,
    TensorSpec,
    encode_header,
    map_tensor,
    open_tensors,
    physical_dtype,
    read_header,
    view_tensor,
    write_tensors,
)

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_library_reads_what_is_streamed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    shapes = data.draw(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=4))
    dtypes = [data.draw(st.sampled_from(sorted(DTYPES))) for _ in shapes]
    specs = [
        TensorSpec(name=f"t{i}", dtype=dtype, shape=tuple(shape))
        for i, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=True))
    ]
    raw = [
        np.random.default_rng(i).integers(0, 100, spec.nbytes).astype(np.uint8)
        for i, spec in enumerate(specs)
    ]
    stream = np.concatenate(raw)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=3).map(sorted))
    record = write_tensors(path, specs, np.split(stream, cuts), metadata={"a": "b"})

    assert record.size == path.stat().st_size
    found = load_file(path)
    with path.open("rb") as file:
        places = open_tensors(file, "x")
    for spec, bytes_ in zip(specs, raw, strict=True):
        value = bytes_.view(physical_dtype(spec.dtype)).reshape(spec.shape)
        assert found[spec.name].dtype == DTYPES[spec.dtype]
        assert found[spec.name].shape == spec.shape
        again = found[spec.name].reshape(-1).view(torch.uint8)
        assert np.array_equal(again.numpy(), bytes_)
        assert np.array_equal(view_tensor(path.read_bytes(), places[spec.name]), value)


def test_data_begins_on_a_page_and_maps_without_a_copy_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(path, [TensorSpec(name="x", dtype="float32", shape=(3, 4))], [values])
    with path.open("rb") as file:
        place = open_tensors(file, "x")["x"]
    assert place.begin % ALIGNMENT == 0
    mapped = map_tensor(path, place)
    mapped[0, 0] = 99
    assert np.array_equal(map_tensor(path, place), values), "a change reached the file"


@pytest.mark.parametrize("apart", [True, False])
def test_the_disk_begins_while_a_file_grows(
    tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TensorSpec(name="x", dtype="int32", shape=(5000,))
    pieces = np.split(np.arange(5000, dtype=np.int32), 50)
    plain = write_tensors(tmp_path / "plain", [spec], [np.concatenate(pieces)])
    begun: list[tuple[int, int]] = []

    def begin(handle: int, first: int, size: int) -> bool:
        begun.append((first, first + size))
        return os.fstat(handle).st_ino == (tmp_path / "x").stat().st_ino

    monkeypatch.setattr(safetensors, "start_writing", begin)
    monkeypatch.setattr(safetensors, "START_BYTES", 1000)
    record = write_tensors(tmp_path / "x", [spec], iter(pieces), apart=apart)
    assert (record.size, record.digest) == (plain.size, plain.digest)
    ends = [0, *(end for _, end in begun)]
    assert [first for first, _ in begun] == ends[:-1], "ranges follow each other"
    assert begun
    assert ends[-1] <= record.size


@pytest.mark.parametrize("count", [1, 3])
def test_too_little_or_too_much_data_is_refused(tmp_path: Path, count: int) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(2,))
    with pytest.raises(ArtifactError, match="bytes of data for 8"):
        write_tensors(tmp_path / "x", [spec], [np.zeros(count, np.float32)])


def _file(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1\0\0",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        _file(b"[" * 5000),
        _file(b"\xff\xfe\0\0"),
        _file([1, 2]),
        _file({"x": 3}),
        _file({"x": {}}),
        _file({"x": ENTRY | {"dtype": "F8_E4M3"}}),
        _file({"x": ENTRY | {"shape": [-2]}}),
        _file({"x": ENTRY | {"shape": [True, 2]}}),
        _file({"x": ENTRY | {"shape": [2.0]}}),
        _file({"x": ENTRY | {"shape": {"2": 2}}}),
        _file({"x": ENTRY | {"shape": [2**62, 2**62]}}),
        _file({"x": ENTRY | {"data_offsets": [0, 4]}}),
        _file({"x": ENTRY | {"data_offsets": [4, 12]}}),
        _file({"x": ENTRY | {"data_offsets": [0]}}),
        _file({"x": ENTRY, "y": ENTRY}),
        _file({"x": ENTRY}, b"\0" * 9),
        _file({"x": ENTRY}, b"\0" * 7),
    ],
)
def test_damaged_files_are_refused(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_header(raw, len(raw), "x.safetensors")
    assert "x.safetensors" in caught.value.message
    (tmp_path / "x").write_bytes(raw)
    with (tmp_path / "x").open("rb") as file, pytest.raises(ArtifactError):
        open_tensors(file, "x.safetensors")


def test_the_header_is_what_the_format_says() -> None:
    raw = encode_header([TensorSpec(name="x", dtype="bfloat16", shape=(2, 3))], {"k": "v"})
    length = int.from_bytes(raw[:8], "little")
    assert len(raw) == 8 + length == ALIGNMENT
    assert json.loads(raw[8:]) == {
        "__metadata__": {"k": "v"},
        "x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    }

"""Files of torch.save: read without unpickling, and planned so that torch reads them."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import TensorSpec
from engram_cli.rows.torch_file import torch_tensors
from engram_cli.rows.torch_write import plan_torch, write_checksums

SPECS = [
    TensorSpec(name="layers.1.a", dtype="float32", shape=(5, 3)),
    TensorSpec(name="layers.1.b", dtype="int64", shape=(4,)),
    TensorSpec(name="c", dtype="bfloat16", shape=(2, 1, 2)),
    TensorSpec(name="d", dtype="float16", shape=(300,)),
]


def planned(path: Path) -> list[np.ndarray]:
    """Write an archive of SPECS; return the values as they are stored."""
    plan = plan_torch(SPECS)
    values = [
        np.arange(np.prod(spec.shape)).astype(physical_dtype(spec.dtype)).reshape(spec.shape)
        for spec in SPECS
    ]
    with path.open("w+b") as file:
        file.truncate(plan.size)
        for at, raw in plan.head.items():
            file.seek(at)
            file.write(raw)
        for begin, each in zip(plan.begins, values, strict=True):
            file.seek(begin)
            file.write(each.tobytes())
    write_checksums(path, plan, SPECS)
    return values


def read(path: Path, name: str) -> np.ndarray:
    place = torch_tensors(path)[0][name]
    count = int(np.prod(place.spec.shape))
    values = np.fromfile(path, physical_dtype(place.spec.dtype), count, offset=place.begin)
    return values.reshape(place.spec.shape)


def test_torch_reads_what_is_planned(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    values = planned(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # all checksums are right
    for options in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **options)
        assert list(loaded) == [spec.name for spec in SPECS]
        for spec, each in zip(SPECS, values, strict=True):
            tensor = loaded[spec.name]
            assert tensor.dtype == getattr(torch, spec.dtype)
            assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == each.tobytes()
            assert np.array_equal(read(path, spec.name), each)


def test_what_torch_saves_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).bfloat16()
    path = tmp_path / "x.pt"
    whole = {"model": module.state_dict(), "step": 3, "rates": [0.1, 0.2], "at": {1: None}}
    for saved in (module.state_dict(), whole):
        torch.save(saved, path)
        places, size = torch_tensors(path)
        assert size < 2000
        assert places.keys() == module.state_dict().keys()
        for name, tensor in module.state_dict().items():
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert read(path, name).tobytes() == raw
    shared = torch.arange(12.0)
    torch.save({"a": shared[4:8], "b": shared.view(3, 4)}, path)
    assert read(path, "a").tolist() == [4, 5, 6, 7]
    assert read(path, "b").shape == (3, 4)


def test_storages_beyond_4_gb(tmp_path: Path) -> None:
    """Holes cost no disk; torch maps the file."""
    torch = pytest.importorskip("torch")
    specs = [
        TensorSpec(name="large", dtype="float16", shape=(2**25, 80)),
        TensorSpec(name="last", dtype="int64", shape=(2,)),
    ]
    plan, path = plan_torch(specs), tmp_path / "x.pt"
    with path.open("w+b") as file:
        file.truncate(plan.size)
        for at, raw in plan.head.items():
            file.seek(at)
            file.write(raw)
        file.seek(plan.begins[1])
        file.write(np.array([7, 9]).tobytes())
    assert path.stat().st_size > 5 * 2**30
    assert read(path, "last").tolist() == [7, 9]
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["last"].tolist() == [7, 9]
    assert loaded["large"].shape == (2**25, 80)


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_never_runs(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        content = {"a": Exploit(tmp_path / "made")}
        archive.writestr("x/data.pkl", pickle.dumps(content, protocol=protocol))
    with pytest.raises(InputError, match=r"calls (posix|os)\.mkdir"):
        torch_tensors(path)
    assert not (tmp_path / "made").exists()


def test_modules_and_views_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(torch.nn.Linear(2, 3), path)
    with pytest.raises(InputError, match="holds more than plain tensors"):
        torch_tensors(path)
    torch.save({"a": torch.ones(3, 4).T}, path)
    with pytest.raises(InputError, match="not contiguous"):
        torch_tensors(path)


def test_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    planned(path)
    whole = path.read_bytes()
    end64 = whole.rindex(b"PK\6\6")
    lies = {
        "its directory lies outside": whole[: end64 + 40] + b"\xff" * 16 + whole[end64 + 56 :],
        "its second end lies outside": whole[:-34] + b"\xff" * 8 + whole[-26:],
        "it has no end": whole[:-22],
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"a" * 999)
    lies["a record is compressed"] = path.read_bytes()
    for match, raw in lies.items():
        path.write_bytes(raw)
        with pytest.raises(ArtifactError, match=match):
            torch_tensors(path)
    short = pickle.dumps({}, protocol=2).replace(b"}", b"(", 1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", short)
    with pytest.raises(InputError, match="more than plain tensors"):
        torch_tensors(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.pt"
    planned(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(EngramError):
        for name in torch_tensors(path)[0]:
            read(path, name)


SIZES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DTYPES = st.sampled_from(["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tensors=st.dictionaries(NAMES, st.tuples(DTYPES, SIZES), max_size=5))
def test_every_plan_is_read_as_it_was_meant(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    specs = [TensorSpec(name=n, dtype=dtype, shape=shape) for n, (dtype, shape) in tensors.items()]
    plan, path = plan_torch(specs), tmp_path / "x.pt"
    with path.open("w+b") as file:
        file.truncate(plan.size)
        for at, raw in plan.head.items():
            file.seek(at)
            file.write(raw)
    write_checksums(path, plan, specs)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    places, _ = torch_tensors(path)
    assert {name: (place.spec, place.begin) for name, place in places.items()} == {
        spec.name: (spec, begin) for spec, begin in zip(specs, plan.begins, strict=True)
    }

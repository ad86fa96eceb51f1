"""Row overlays: what they hold, and what verify finds in them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from formats.small_artifacts import pleo, plepatch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.verify.command import VerifyRequest, VerifyResult, verify
from engram_cli.errors import EngramError, InputError
from engram_cli.formats.overlay import FORMAT, Overlay
from engram_cli.rows import DTYPES

ROWS = np.array([7, 3, 320_001_535])


def opened(path: Path) -> Overlay:
    found = find_artifact(path)
    assert found.kind == "overlay"
    source = found.open()
    assert isinstance(source, Overlay)
    return source


def verified(path: Path) -> VerifyResult:
    return verify(VerifyRequest(path=path, folder=path.parent))


def test_pleo(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 160)).astype(np.float32)
    path = pleo(tmp_path / "edit.pleo", ROWS, values)
    source = opened(path)
    assert np.array_equal(source.row_numbers(), ROWS)
    (found,) = source.pieces()
    assert found is not None
    assert np.array_equal(found, values)
    result = inspect(InspectRequest(path=path, folder=tmp_path))
    assert dict(result.facts)["rows"] == "3 of 160 x float32"
    assert [check.result for check in result.checks] == ["ok"]
    assert result.scheme is None
    assert verified(path).checked == ("row numbers", "values")


@pytest.mark.parametrize(("kind", "name"), [(0, "float32"), (1, "float16"), (8, "q8_0")])
def test_plepatch(tmp_path: Path, kind: int, name: str) -> None:
    row_type = DTYPES.load(name)
    values = np.random.default_rng(0).integers(0, 60, (3, 64))
    if row_type.items.block is None:
        stored = values.astype(name)
        payload = stored.view(np.uint8).reshape(3, -1)
    else:
        stored = payload = np.resize(values.astype(np.uint8), (3, row_type.width(64)))
    path = plepatch(tmp_path / "edit.plepatch", ROWS, payload, dim=64, kind=kind)
    source = opened(path)
    assert source.tensor == "per_layer_token_embd.weight"
    assert dict(FORMAT.facts(source))["manifest: note"] == "three towns"
    assert np.array_equal(source.row_numbers(), ROWS)
    expected = np.empty((3, 64), dtype=np.float32)
    row_type.decode(stored, None, expected)
    (found,) = source.pieces()
    assert found is not None
    assert np.array_equal(found, expected)
    assert verified(path).ok


def test_what_verify_finds(tmp_path: Path) -> None:
    values = np.zeros((3, 4), dtype=np.float32)
    values[1, 2] = np.nan
    problems = verified(pleo(tmp_path / "a.pleo", np.array([5, -1, 5]), values)).problems
    assert problems == (
        "named again: 1 row, such as 5",
        "below 0 or past 2^63: 1 row number",
        "values that are not finite: in 1 row",
    )
    path = pleo(tmp_path / "b.pleo", ROWS, values)
    path.write_bytes(path.read_bytes()[:-1])
    assert verified(path).problems == ("bytes of the file: 71, expected 72",)
    payload = np.zeros((3, 16), dtype=np.uint8)
    other = plepatch(
        tmp_path / "c.plepatch", ROWS, payload, dim=4, kind=0, manifest=b"[1]", version=2
    )
    assert verified(other).problems == (
        "version: 2, expected 1",
        "format of the manifest: not readable, expected ple-overlay-v1",
    )
    unknown = plepatch(tmp_path / "d.plepatch", ROWS, payload, dim=16, kind=99)
    assert verified(unknown).not_checked == ("values: ggml type 99 is not decoded here",)


def test_an_overlay_alone_is_not_looked_up(tmp_path: Path) -> None:
    path = pleo(tmp_path / "edit.pleo", ROWS, np.zeros((3, 4)))
    with pytest.raises(InputError):
        lookup(LookupRequest(path=path, text="an Apple", folder=tmp_path))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(tmp_path: Path, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        path = pleo(tmp_path / "e.pleo", ROWS, np.ones((3, 4)))
    else:
        payload = np.zeros((3, 8), dtype=np.uint8)
        path = plepatch(tmp_path / "e.plepatch", ROWS, payload, dim=4, kind=1)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    with contextlib.suppress(EngramError):
        verified(path)
    with contextlib.suppress(EngramError):
        inspect(InspectRequest(path=path, folder=tmp_path))

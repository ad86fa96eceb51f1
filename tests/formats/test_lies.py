"""Headers that lie: refused, or named by a check, without reading or allocating what they claim."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints, small_artifacts
from formats.converted import converted

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.inspect.command import inspect
from engram_cli.commands.requests.reading import InspectRequest, VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import ArtifactError, EngramError
from engram_cli.vocab.compress import CompressedVocab

MOST_BYTES = 2**26  # of memory for a file of a few kilobytes, modules that are loaded included


def refused(path: Path) -> None:
    """Both commands find the lie, in little memory."""
    tracemalloc.start()
    try:
        with suppress(EngramError):
            shown = inspect(InspectRequest(path=path, folder=path.parent, threads=1))
            assert any(check.result == "differs" for check in shown.checks)
        with suppress(EngramError):
            assert not verify(VerifyRequest(path=path, folder=path.parent, threads=1)).ok
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def change_header(path: Path, change: Callable[[dict[str, Any]], object], text: str = "") -> None:
    """Change the header of a safetensors file, whose data stays as it is."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    if text:
        new = new[:-1] + text.encode() + b"}"
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])


LAYER = "layers.1.engram.multi_head_embedding."
ROWS, OFFSETS = f"{LAYER}embedding.weight", f"{LAYER}offsets"


def moved(header: dict[str, Any], name: str, by: int) -> None:
    header[name]["data_offsets"] = [each + by for each in header[name]["data_offsets"]]


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "overlap": lambda h: moved(h, ROWS, 8),
    "beyond the file": lambda h: moved(h, ROWS, 2**40),
    "negative": lambda h: moved(h, ROWS, -(2**40)),
    "terabytes": lambda h: h[ROWS].update(
        shape=[2**40, 2**20], data_offsets=[0, 2**62]
    ),
    "a shape whose product is 0 modulo 2^64": lambda h: h[ROWS].update(shape=[2**32, 2**32]),
    "many axes": lambda h: h[ROWS].update(shape=[1] * 100_000),
    "an offset past the rows": lambda h: h[OFFSETS].update(shape=[2**50]),
    "no dtype": lambda h: h[ROWS].update(dtype="F128"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_state_dict(tmp_path: Path, small_vocab: CompressedVocab, lie: str) -> None:
    path = small_artifacts.demo(tmp_path / "m", small_vocab).path / "model.safetensors"
    change_header(path, LIES[lie])
    refused(path)


def test_a_tensor_named_twice(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    path = small_artifacts.demo(tmp_path / "m", small_vocab).path / "model.safetensors"
    again = {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]}
    change_header(path, lambda header: None, f', "{ROWS}": {json.dumps(again)}')
    refused(path)


def test_a_deep_header(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    path = small_artifacts.demo(tmp_path / "m", small_vocab).path / "model.safetensors"
    change_header(path, lambda header: None, f', "x": {"[" * 50_000}{"]" * 50_000}')
    refused(path)


@pytest.mark.parametrize("place", ["../m.safetensors", "/etc/passwd", "a/b", "..", "", "x" * 300])
def test_an_index_that_leads_elsewhere(
    tmp_path: Path, small_vocab: CompressedVocab, place: str
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    index = made.path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["layers.1.engram.embed.weight"] = place
    index.write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match="names the file"):
        find_artifact(made.path).open()


COUNTS = [2**31, 2**40, 2**62, 2**64 - 1]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("at", [8, 16])
def test_gguf_counts(tmp_path: Path, small_vocab: CompressedVocab, count: int, at: int) -> None:
    """Of tensors and of keys."""
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    raw = bytearray(made.path.read_bytes())
    raw[at : at + 8] = count.to_bytes(8, "little")
    made.path.write_bytes(raw)
    refused(made.path)


def test_gguf_tensors_that_overlap(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    raw = made.path.read_bytes()
    name = b"blk.3.engram_embd.weight"
    at = raw.index(name) + len(name) + 4 + 16 + 4  # axes, dims, type
    made.path.write_bytes(raw[:at] + bytes(8) + raw[at + 8 :])
    with pytest.raises(ArtifactError, match="overlap"):
        find_artifact(made.path).open()


@pytest.mark.parametrize("at", [16, 24, 32, 40])
@pytest.mark.parametrize("count", [0, *COUNTS])
def test_a_plepatch(tmp_path: Path, at: int, count: int) -> None:
    """Values a row, bytes a row, rows, and bytes of the manifest."""
    made = checkpoints.qwen_ple(tmp_path / "q")
    path = tmp_path / "x.plepatch"
    converted(made.path, "plepatch", path, rows=(0, 20))
    raw = bytearray(path.read_bytes())
    raw[at : at + 8] = count.to_bytes(8, "little")
    path.write_bytes(raw)
    refused(path)


@pytest.mark.parametrize("counts", [(2**32 - 1, 160), (20, 2**32 - 1), (0, 160), (20, 0)])
def test_a_pleo(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = small_artifacts.pleo(tmp_path / "x.pleo", np.arange(20), np.ones((20, 160)))
    path.write_bytes(path.read_bytes()[:4] + struct.pack("<2I", *counts) + path.read_bytes()[12:])
    refused(path)


@pytest.mark.parametrize(
    "store",
    [{"shards": 2**16}, {"shards": 2**62}, {"rows_per_shard": 2**39}, {"width": 2**24},
     {"shards": -1}, {"rows_per_shard": 0}, {"path": "../x"}],
)  # fmt: skip
def test_a_store(tmp_path: Path, store: dict[str, Any]) -> None:
    made = small_artifacts.store(tmp_path / "s")
    made.bundle["memory"]["store"].update(store)
    (made.path / "bundle.json").write_text(json.dumps(made.bundle))
    refused(made.path)


def test_a_scale_without_axes(tmp_path: Path) -> None:
    """A single value, of shape [], is read as the one of shape [1]."""
    made = checkpoints.qwen_ple(tmp_path / "q", dtype="float8_e4m3fn")
    before = find_artifact(made.path).open().vectors(2, [5, 900])
    name = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding.weight_scale"
    file = made.path / "model-00002-of-00002.safetensors"
    change_header(file, lambda header: header[name].update(shape=[]))
    assert np.array_equal(find_artifact(made.path).open().vectors(2, [5, 900]), before)


def test_a_token_map_of_odd_size(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    converted(made.path, "row264", tmp_path / "r")
    place = tmp_path / "r" / "token_map.i32"
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"token_map\.i32 has"):
        find_artifact(tmp_path / "r").open()

"""Damaged files say the same from afar as from the disk, and raise only our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from remote.server import Behaviour, serving

from engram_cli.commands.artifact import find_artifact
from engram_cli.errors import EngramError
from engram_cli.remote.locate import locate
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab
) -> Iterator[Behaviour]:
    """A server of a GGUF file and a Qwen4-Exp folder."""
    folder = tmp_path_factory.mktemp("served")
    checkpoints.deepseek_gguf(folder / "m.gguf", small_vocab, "llama.cpp")
    checkpoints.qwen_ple(folder / "qwen")
    with serving(folder) as server:
        yield server


def outcome(path: Path, shown: str) -> Any:
    """Return what a source says and gives, or its error; `shown`: its path in texts."""
    try:
        source: Any = find_artifact(path).open()
        layer = source.layers[0] if source.layers else None
        values = None if layer is None else source.vectors(layer, [1, 50]).view(np.uint32).tolist()
        return source.layout.fingerprint, source.checks, values
    except EngramError as error:
        return type(error), error.message.replace(shown, "SOURCE")


@given(data=st.data())
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize(
    ("source", "damaged"),
    [("m.gguf", "m.gguf"), ("qwen", "qwen/model-00001-of-00002.safetensors"),
     ("qwen", "qwen/model.safetensors.index.json"), ("qwen", "qwen/config.json")],
)  # fmt: skip
def test_damage_says_the_same(
    served: Behaviour, source: str, damaged: str, data: st.DataObject
) -> None:
    file = served.folder / damaged
    whole = file.read_bytes()
    raw = bytearray(whole[: data.draw(st.sampled_from((len(whole), 3000, 200, 9)))])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(raw), 4096) - 1))
        raw[at] = data.draw(st.sampled_from((0, 1, 0x22, 0x7B, 0x7F, 0xFF)))
    try:
        file.write_bytes(bytes(raw))
        near = outcome(served.folder / source, str(served.folder))
        far = outcome(locate(Path(f"{served.address}/{source}")), served.address)
    finally:
        file.write_bytes(whole)
    assert near == far

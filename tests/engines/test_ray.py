"""Ray counts what the local engine counts, to the byte, whatever is lost on the way."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from scripts import run_on_ray
from small_tokenizers import PROSE

from engram_cli import write_vocab
from engram_cli.vocab.compress import CompressedVocab

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@pytest.fixture
def here(tmp_path: Path, tokenizer_file: Path, small_vocab: CompressedVocab) -> Path:
    """A workspace with a corpus of several partitions, and one with a bad file."""
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    for index in range(12):
        path = tmp_path / "corpus" / f"{index:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{index} " + PROSE[index % len(PROSE)] * (6 + index % 5))
    (tmp_path / "corpus" / "empty.md").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(b"fine\xff")
    return tmp_path


@needs_ray
def test_a_cluster_that_loses_a_node_counts_the_same(here: Path) -> None:
    found, here = run_on_ray("engines/ray_cluster.py", here)
    lost = found["lost"]
    assert lost["equal"]
    assert lost["all"]
    assert lost["steps"] == 7
    assert "ray: 7 tasks for 7 partitions, 2 at a time, " in " ".join(lost["notes"])
    assert "1 empty files were skipped" in lost["notes"]
    assert found["alive"] == 2  # the head, and the node that came for the one that was lost
    assert found["again"]
    assert found["kept"]
    assert found["bad"] == [
        "UndecodableError",
        f"{here}/bad/a.txt, line 1: byte 4 is not UTF-8 (0xFF)",
    ]
    assert found["large"][0] == "InputError"
    assert found["large"][1].startswith("a task takes 64 CPUs and ")
    assert found["pipe"][1] == "<stdin> cannot be read by the workers of a cluster"
    assert found["stop"] == "interrupted"
    assert found["idle"]
    assert found["written"] == ["again", "local", "lost"]

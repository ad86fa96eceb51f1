"""Ray fills what the local engine fills, to the digest, whatever is lost on the way."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from scripts import run_on_ray
from small_tokenizers import PROSE

from engram_cli import write_vocab
from engram_cli.vocab.compress import CompressedVocab

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@needs_ray
def test_a_cluster_that_loses_nodes_fills_the_same(
    tmp_path: Path, tokenizer_file: Path, small_vocab: CompressedVocab
) -> None:
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    (tmp_path / "corpus").mkdir()
    for index in range(8):
        text = f"{index} " + PROSE[index % len(PROSE)] * (6 + index % 5)
        (tmp_path / "corpus" / f"{index:02}.txt").write_text(text)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(b"fine\xff")
    found, _ = run_on_ray("engines/ray_filling_cluster.py", tmp_path)
    assert found["lost"]
    assert found["alive"] == 2  # the head, and the node that came for the two that were lost
    tokens = found["done"]["2-grams of layer 1"]
    assert found["stages"] == [
        *("tokens of the corpus", "2-grams of layer 1", "3-grams of layer 1"),
        *("vectors of layer 1", "sums of layer 1", "rows into the table"),
    ]
    assert found["done"]["tokens of the corpus"] == sum(
        path.stat().st_size for path in (tmp_path / "corpus").iterdir()
    )
    assert found["done"]["3-grams of layer 1"] == tokens > 500
    notes = " ".join(found["notes"])
    partitions = re.search(r"ray: tokens of (\d+) partitions, 2 at a time, (\d+) MB each", notes)
    assert partitions is not None
    assert int(partitions[1]) > 3
    assert "summed by 2 tasks at a time, 1,074 MB each" in notes
    assert found["sums"] == 0
    assert found["rows"] > 0
    assert found["idle"]
    assert found["again"]
    assert any("tokens of this corpus from an earlier run" in note for note in found["again notes"])
    assert any("resuming an interrupted build" in note for note in found["again notes"])
    assert found["bad"] == [
        "UndecodableError",
        f"{tmp_path}/bad/a.txt, line 1: byte 4 is not UTF-8 (0xFF)",
    ]
    assert found["large"][0] == "InputError"
    assert found["large"][1].startswith("a task takes 1 CPUs and ")
    assert found["small"] == ["InputError", "268 MB a task"]

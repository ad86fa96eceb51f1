"""Conversions at the released sizes: sparse files, of which a few rows are read and written.

V4.1 has 384,006,168 rows of 264 bytes in layer 1, Qwen4-Exp 320,001,536 of 320: offsets go past
2^32 in rows times width, and in bytes of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.converted import converted

from engram_cli.commands.artifact import find_artifact
from engram_cli.formats import overlay_write, row_files, row_writer
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.vocab.compress import CompressedVocab

NEAR = 17_000_000  # 256 x 17,000,000 is past 2^32


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conversion write the pieces that `places` names, and the disk have room for all."""

    def tasks(writer: Any, done: int) -> Iterator[tuple[int, int, int]]:
        source = writer._plan.source
        for layer in source.layers:
            for first in places(source.layout.layer(layer).rows):
                yield layer, first, 3

    monkeypatch.setattr(row_writer.Writer, "tasks", tasks)
    monkeypatch.setattr(row_files, "free_bytes", lambda _: 2**50)


def places(rows: int) -> list[int]:
    return [0, NEAR, rows // 2 - 1, rows - 3]


def fill(source: RowSource, parts: tuple[str, ...]) -> None:
    """Write rows into the holes of a source at all places, each another one."""
    for layer in source.layers:
        for part in parts:
            width = source.lines(layer, part, 0, 1).nbytes
            for first in places(source.layout.layer(layer).rows):
                for row in range(first, first + 3):
                    span = next(s for s in reversed(source.spans(layer, part)) if s.first <= row)
                    values = np.random.default_rng([layer, row]).integers(100, 120, width)
                    with span.file.open("r+b") as file:
                        file.seek(span.begin + (row - span.first) * width)
                        file.write(values.astype(np.uint8).tobytes())


def same(before: RowSource, after: RowSource) -> None:
    for layer in before.layers:
        rows = before.layout.layer(layer).rows
        ids = [first + i for first in places(rows) for i in range(3)]
        values = before.vectors(layer, ids)
        assert np.array_equal(values, after.vectors(layer, ids))
        assert len(np.unique(values, axis=0)) == len(ids)
        assert not after.vectors(layer, [3, rows - 4]).any()


@pytest.fixture
def release(tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path) -> RowSource:
    """Two tables of 101 GB each."""
    made = checkpoints.deepseek_v41(
        tmp_path / "m", small_vocab, tokenizer_file, sparse=True, dim=256, rows_per_head=16_000_000
    )
    source = find_artifact(made.path).open()
    assert source.layout.layers[0].rows == 384_006_168
    fill(source, (ROWS, SCALES))
    return source


@pytest.mark.parametrize(
    ("to", "name", "options"),
    [
        ("row264", "out", {}),
        ("deepseek-v4.1", "out", {}),
        ("gguf", "out.gguf", {}),
        ("gguf", "out.gguf", {"dialect": "side-car"}),
        ("gguf", "out-00001-of-00004.gguf", {"dialect": "upper case"}),
    ],
)
def test_v41(
    tmp_path: Path, release: RowSource, few_rows: None, to: str, name: str, options: dict[str, Any]
) -> None:
    result = converted(release.path, to, tmp_path / name, verify=False, **options)
    assert result.size > 2 * 384_006_168 * 264
    after = find_artifact(tmp_path / name).open()
    assert after.layout.fingerprint == release.layout.fingerprint
    same(release, after)


def test_v41_into_a_release(tmp_path: Path, release: RowSource, few_rows: None) -> None:
    converted(release.path, "row264", tmp_path / "r", verify=False)
    converted(tmp_path / "r", "deepseek-v4.1", tmp_path / "p", verify=False, patch=release.path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "p" / name).write_bytes((release.path / name).read_bytes())
    same(release, find_artifact(tmp_path / "p").open())


def qwen(folder: Path) -> RowSource:
    """The n-gram table of Qwen4-Exp: 128 shards of [2500012, 160] bfloat16, 102 GB."""
    layout = hash_layout("qwen-ple")
    writer = checkpoints.Writer(folder=folder)
    start = "model.language_model.layers.1.ple.ple_embedding."
    for shard in range(128):
        name = f"{start}ngram_embedding.shard_{shard}.weight"
        writer.add(f"model-{shard // 16}.safetensors", name, "bfloat16", None, 2_500_012, 160)
    config = {"ple_layer_ids": [2], "ngram_size": 3, "heads_per_ngram": 8, "vocab_size": 248320}
    config |= {"ngram_vocab_size_base": 20_000_000, "eos_token_id": 248044, "ple_embed_dim": 2560}
    source = find_artifact(writer.write({"text_config": config})).open()
    assert source.layout.fingerprint == layout.fingerprint
    fill(source, (ROWS,))
    return source


@pytest.mark.parametrize(("to", "name"), [("qwen-ple", "out"), ("gguf", "out.gguf"),
                                          ("engramdb", "out")])  # fmt: skip
def test_qwen(tmp_path: Path, few_rows: None, to: str, name: str) -> None:
    source = qwen(tmp_path / "q")
    converted(source.path, to, tmp_path / name, verify=False)
    same(source, find_artifact(tmp_path / name).open())


def test_rows_of_an_overlay_past_2_to_the_28(tmp_path: Path) -> None:
    source = qwen(tmp_path / "q")
    rows = source.layout.layers[0].rows
    converted(source.path, "plepatch", tmp_path / "out.plepatch", rows=(rows - 3, rows))
    overlay: Any = find_artifact(tmp_path / "out.plepatch").open()
    assert overlay.row_numbers().tolist() == [rows - 3, rows - 2, rows - 1]
    pieces = np.concatenate(list(overlay.pieces()))
    assert np.array_equal(pieces, source.vectors(2, [rows - 3, rows - 2, rows - 1]))
    assert overlay_write.PLEPATCH.part_of_rows

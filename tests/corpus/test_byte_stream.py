"""Packed text: told by its bytes, read as a stream, progress in packed bytes, damage by name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from corpus.corpora import read_items, stream_of, texts
from corpus.written import PACKERS, zstd

from engram_cli.corpus.byte_stream import compression_of
from engram_cli.corpus.readers import jsonl
from engram_cli.errors import CorpusError

PACKED = [ending for ending in PACKERS if ending]
NOISE = "".join(map(chr, np.random.default_rng(1).integers(97, 123, 300_000).tolist()))


@pytest.mark.parametrize("ending", PACKED)
def test_packing_is_told_by_the_bytes_and_not_by_the_ending(ending: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PACKERS[ending](b"packed"))
    assert texts(read_items(tmp_path / "a.txt")) == ["packed"]
    (tmp_path / f"b.txt{ending}").write_bytes(b"plain")
    assert texts(read_items(tmp_path / f"b.txt{ending}")) == ["plain"]


@pytest.mark.parametrize("ending", PACKED)
def test_several_archives_one_after_the_other_are_one_text(ending: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PACKERS[ending](b"one, ") + PACKERS[ending](b"two"))
    assert texts(read_items(tmp_path / "a.txt")) == ["one, two"]


@pytest.mark.parametrize("ending", PACKED)
def test_progress_is_in_packed_bytes(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    line = json.dumps({"text": NOISE}) + "\n"
    path.write_bytes(PACKERS[ending](line.encode() * 3))
    sizes = [item.size for item in read_items(path)]
    assert path.stat().st_size - 64 <= sum(sizes) <= path.stat().st_size


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_truncated_archive_is_named(ending: str, kept: float, tmp_path: Path) -> None:
    raw = PACKERS[ending](NOISE.encode())
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(CorpusError, match=rf"a.txt{ending} is damaged or truncated"):
        read_items(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_a_damaged_archive_is_named(ending: str, tmp_path: Path) -> None:
    raw = bytearray(PACKERS[ending](NOISE.encode()))
    raw[len(raw) // 2] ^= 255
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated"):
        read_items(tmp_path / "a.txt")


def test_garbage_after_an_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(zstd(b"text") + b"garbage")
    with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated: zstd cannot decompress"):
        read_items(tmp_path / "a.txt")


@pytest.mark.parametrize("ending", PACKED)
def test_memory_does_not_grow_with_what_is_unpacked(ending: str, tmp_path: Path) -> None:
    """32 MB of one line repeated, in a file of some kilobytes."""
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(PACKERS[ending](b"the same line again and again.." * 2**16) * 16)
    assert path.stat().st_size < 2**20
    stream, _ = stream_of([path])
    tracemalloc.start()
    try:
        characters = sum(
            len(document.text)
            for batch in stream._batches()
            for document in batch.documents  # type: ignore[union-attr]
        )
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()
    assert characters == 31 * 2**20


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_LONGEST", 30)
    line = b'{"text": "fine"}\n'
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(line * 3 + bytes(100)))
    with pytest.raises(CorpusError, match=r"a.jsonl, line 4 has 30 bytes or more"):
        read_items(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(line * 9)
    assert len(read_items(tmp_path / "a.jsonl")) == 9


def test_packed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in (gzip.compress(b"piped"), b"piped", b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert texts(read_items(Path("-"))) == ["piped" if raw else ""][: bool(raw)]


def test_text_that_begins_like_bzip2_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"BZh9 is how bzip2 begins")
    assert texts(read_items(tmp_path / "a.txt")) == ["BZh9 is how bzip2 begins"]
    assert (
        compression_of(bz2.compress(b"")[:16])
        == compression_of(bz2.compress(b"x", 1)[:16])
        == "bz2"
    )


def test_a_folder_gives_its_packed_texts(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "b.jsonl.zst", "c.md.xz", "d.tar.gz", "e.gz"):
        (tmp_path / name).touch()
    _, files = stream_of([tmp_path])
    assert [(Path(file.name).name, file.format) for file in files] == [
        ("a.txt.gz", "text"),
        ("b.jsonl.zst", "jsonl"),
        ("c.md.xz", "text"),
    ]

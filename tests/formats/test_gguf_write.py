"""GGUF files whose header is written again: keys computed, renamed and dropped, rows untouched."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.checkpoints import Written
from formats.test_gguf import opened, results, same_vectors
from small_tokenizers import wordpiece_tokenizer

from engram_cli.commands.convert.to import WriteResult, convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import ArtifactError, EngramError, InputError, OutputError
from engram_cli.formats import row_writer
from engram_cli.rows.gguf_file import GgufFile, read_gguf, read_header
from engram_cli.rows.gguf_write import PADDING
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.lookup import VocabMap

LACKS = tuple(
    f".engram.{name}" for name in ("multipliers", "primes", "offsets", "token_map", "pad_id")
)


def converted(path: Path, out: Path, **options: Any) -> WriteResult:
    result = convert(ConvertRequest(source=path, to="gguf", out=out, **options))
    assert isinstance(result, WriteResult)
    return result


def data_of(file: GgufFile) -> dict[str, bytes]:
    return {
        name: each.file.read_bytes()[each.begin :][: each.nbytes]
        for name, each in file.tensors.items()
    }


@pytest.fixture
def lacking(tmp_path: Path, small_vocab: CompressedVocab) -> Written:
    return checkpoints.deepseek_gguf(
        tmp_path / "old.gguf", small_vocab, "llama.cpp", leave_out=LACKS
    )


def test_missing_keys_are_computed_named_and_everything_else_is_kept(
    tmp_path: Path, lacking: Written, tokenizer_file: Path
) -> None:
    out = tmp_path / "new.gguf"
    result = converted(lacking.path, out, dialect="llama.cpp", tokenizer=tokenizer_file)
    assert (result.written, result.verified) == (True, True)
    assert {c.name for c in result.changes if c.action == "computed"} == {
        f"deepseek41{end}" for end in LACKS
    }
    assert sum(change.action == "kept" for change in result.changes) == 4
    source = opened(out)
    assert not results(source, "differs")
    assert results(source, "ok")["constants in the file"][0] == "9 of 9"
    assert source.layout.fingerprint == lacking.layout.fingerprint
    same_vectors(source, lacking)
    before, after = read_header(lacking.path), read_header(out)
    raw, new = lacking.path.read_bytes(), out.read_bytes()
    for name, (begin, end) in before.spans.items():
        there = after.spans[name]
        assert raw[begin:end] == new[slice(*there)]
    assert raw[before.data :] == new[after.data :]
    assert after.data % 2**16 == before.data % 2**16


def test_the_package_gguf_reads_what_is_written(
    tmp_path: Path, lacking: Written, tokenizer_file: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    converted(lacking.path, tmp_path / "new.gguf", tokenizer=tokenizer_file)
    old, new = (gguf.GGUFReader(path) for path in (lacking.path, tmp_path / "new.gguf"))
    layout = lacking.layout
    values = {
        "multipliers": [value for e in layout.layers for value in e.multipliers],
        "primes": [value for e in layout.layers for value in e.moduli],
        "token_map": list(layout.lookup if layout.lookup is not None else ()),
        "pad_id": layout.filler_id,
    }
    for name, value in values.items():
        assert new.get_field(f"deepseek41.engram.{name}").contents() == value
    tokens = [reader.get_field("tokenizer.ggml.tokens").contents() for reader in (old, new)]
    assert tokens[0] == tokens[1]
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert (before.name, before.tensor_type) == (after.name, after.tensor_type)
        assert np.array_equal(before.data, after.data)


def test_check_reports_and_writes_nothing(
    tmp_path: Path, lacking: Written, tokenizer_file: Path
) -> None:
    options: dict[str, Any] = {"to": "gguf", "tokenizer": tokenizer_file, "check": True}
    result = convert(ConvertRequest(source=lacking.path, **options))
    assert isinstance(result, WriteResult)
    assert (result.is_change, result.written) == (True, False)
    assert list(tmp_path.glob("*.gguf")) == [lacking.path]
    converted(lacking.path, tmp_path / "new.gguf", tokenizer=tokenizer_file)
    again = convert(ConvertRequest(source=tmp_path / "new.gguf", **options))
    assert isinstance(again, WriteResult)
    assert not again.is_change


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ds4", "llama.cpp"),
        ("llama.cpp", "ds4"),
        ("tensors", "llama.cpp"),
        ("upper case, NUM_EMBEDDINGS", "upper case"),
    ],
)
def test_dialects_there_and_back(
    tmp_path: Path, small_vocab: CompressedVocab, first: str, second: str
) -> None:
    written = checkpoints.deepseek_gguf(tmp_path / "a.gguf", small_vocab, first)
    converted(written.path, tmp_path / "b.gguf", dialect=second)
    source = opened(tmp_path / "b.gguf")
    assert source.dialect == second
    assert not results(source, "differs")
    assert source.layout.fingerprint == written.layout.fingerprint
    same_vectors(source, written)
    old, new = (read_gguf(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    rows, kept = data_of(old), data_of(new)
    assert kept == {name: rows[name] for name in kept}
    assert rows.keys() - kept.keys() == {n for n in rows if n.startswith("engram.")}
    if first not in ("ds4", "llama.cpp"):
        return
    converted(tmp_path / "b.gguf", tmp_path / "c.gguf", dialect=first)
    back = read_gguf(tmp_path / "c.gguf")
    assert back.keys.keys() - {PADDING} == old.keys.keys()
    assert all(np.array_equal(back.keys[name], value) for name, value in old.keys.items())
    assert data_of(back) == rows


@pytest.mark.parametrize("dialect", ["ds4", "llama.cpp"])
def test_a_raw_pad_token_becomes_the_compressed_one(
    tmp_path: Path, small_vocab: CompressedVocab, dialect: str
) -> None:
    """Readers hash with `pad_id` as it is: inspect and verify name one that was not compressed."""
    lookup = small_vocab.lookup.copy()
    lookup[[2, 5]] = lookup[[5, 2]]
    swapped: Any = VocabMap(lookup=lookup, size=small_vocab.size)
    written = checkpoints.deepseek_gguf(tmp_path / "a.gguf", swapped, "llama.cpp")
    filler = written.layout.filler_id
    assert filler != 2
    raw = written.path.read_bytes()
    name = b"deepseek41.engram.pad_id" + (4).to_bytes(4, "little")
    assert raw.count(name + filler.to_bytes(4, "little")) == 1
    written.path.write_bytes(
        raw.replace(name + filler.to_bytes(4, "little"), name + (2).to_bytes(4, "little"))
    )
    (check,) = (each for each in opened(written.path).checks if each.name == "pad id")
    assert (check.result, check.found) == ("differs", "2, the token's own id")
    assert check.expected == f"{filler}, its compressed id"
    found = verify(VerifyRequest(path=written.path, folder=tmp_path)).problems
    assert any(line.startswith("pad id: 2, the token's own id") for line in found)
    result = converted(written.path, tmp_path / "b.gguf", dialect=dialect)
    (change,) = (each for each in result.changes if each.name.endswith(".pad_id"))
    assert (change.action, change.value) == ("was 2", str(filler))
    assert opened(tmp_path / "b.gguf").layout.fingerprint == written.layout.fingerprint
    assert verify(VerifyRequest(path=tmp_path / "b.gguf", folder=tmp_path)).ok


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ("llama.cpp", "upper case", "needs items and scales in two I8 tensors"),
        ("tensors", "tensors", "'tensors' of GGUF is not written"),
    ],
)
def test_a_model_whose_rows_would_be_other_bytes_is_refused(
    tmp_path: Path, small_vocab: CompressedVocab, first: str, second: str, match: str
) -> None:
    written = checkpoints.deepseek_gguf(tmp_path / "a.gguf", small_vocab, first)
    with pytest.raises(InputError, match=match):
        converted(written.path, tmp_path / "b.gguf", dialect=second)
    assert not (tmp_path / "b.gguf").exists()


def test_nothing_is_computed_from_another_models_tokenizer(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    other_tokenizer = tmp_path / "tokenizer.json"
    wordpiece_tokenizer().save(str(other_tokenizer))
    written = checkpoints.deepseek_gguf(
        tmp_path / "a.gguf", small_vocab, "llama.cpp", leave_out=(".engram.pad_id",)
    )
    with pytest.raises(ArtifactError, match="token map is another map"):
        converted(written.path, tmp_path / "b.gguf", tokenizer=other_tokenizer)
    converted(written.path, tmp_path / "b.gguf")  # its own map is enough
    assert results(opened(tmp_path / "b.gguf"), "ok")["constants in the file"][0] == "9 of 9"


def test_types_that_are_not_known_are_kept(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    written = checkpoints.deepseek_gguf(tmp_path / "a.gguf", small_vocab, "tensors")
    raw = bytearray(written.path.read_bytes())
    entry = next(
        t for t in read_header(written.path).tensors if t.name.endswith("3.engram_wkv.weight")
    )
    raw[entry.span[1] - 12 : entry.span[1] - 8] = (39).to_bytes(4, "little")  # MXFP4
    written.path.write_bytes(raw)
    converted(written.path, tmp_path / "b.gguf", dialect="llama.cpp")
    old, new = read_header(written.path), read_header(tmp_path / "b.gguf")
    places = []
    for header in (old, new):
        (found,) = (t for t in header.tensors if t.name == entry.name)
        assert found.kind == 39
        begin = header.data + found.offset
        places.append(header.path.read_bytes()[begin : begin + 128])
    assert places[0] == places[1]
    same_vectors(opened(tmp_path / "b.gguf"), written)


def test_without_copy_file_range_the_bytes_are_the_same(
    tmp_path: Path, lacking: Written, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(lacking.path, tmp_path / "a.gguf", tokenizer=tokenizer_file)

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    converted(lacking.path, tmp_path / "b.gguf", tokenizer=tokenizer_file)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_copying_is_resumed(
    tmp_path: Path, lacking: Written, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full leaves no file; the same command copies the rest."""
    converted(lacking.path, tmp_path / "whole.gguf", tokenizer=tokenizer_file)
    monkeypatch.setattr(row_writer, "_FLUSHED", 2**17)
    real, sizes = os.copy_file_range, []

    def full(source: int, target: int, count: int, begin: int) -> int:
        if len(sizes) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sizes.append(real(source, target, count, begin))
        return sizes[-1]

    out = tmp_path / "b.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", full)
        with pytest.raises(OutputError, match="No space left"):
            converted(lacking.path, out, tokenizer=tokenizer_file)
    assert not out.exists()
    note = json.loads((tmp_path / "b.gguf.partial" / "rows.json").read_text())
    assert note["copied"] == 9 * 2**17
    sizes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", lambda *a: sizes.append(real(*a)) or sizes[-1])
        result = converted(lacking.path, out, tokenizer=tokenizer_file)
    assert 0 < sum(sizes) <= result.size - note["copied"]
    assert result.verified
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["b.gguf", lacking.path.name, "whole.gguf"]


def test_force_replaces_only_what_engram_wrote(
    tmp_path: Path, lacking: Written, tokenizer_file: Path
) -> None:
    out, options = tmp_path / "new.gguf", {"tokenizer": tokenizer_file}
    out.write_bytes(lacking.path.read_bytes())
    with pytest.raises(OutputError, match="is no GGUF file written by engram"):
        converted(lacking.path, out, force=True, **options)
    with pytest.raises(OutputError, match="is what this command reads"):
        converted(lacking.path, lacking.path, force=True, **options)
    out.unlink()
    converted(lacking.path, out, **options)
    with pytest.raises(OutputError, match="already exists"):
        converted(lacking.path, out, **options)
    first = out.read_bytes()
    converted(lacking.path, out, force=True, **options)
    assert out.read_bytes() == first


def test_of_several_parts_the_first_is_written(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    first = tmp_path / "m-00001-of-00002.gguf"
    lacks = (*LACKS, "1.engram_wkv.weight", "3.engram_wkv.weight")
    checkpoints.deepseek_gguf(first, small_vocab, "llama.cpp", leave_out=lacks)
    other = {"blk.1.engram_wkv.weight": ("float32", np.ones((4, 8), np.float32))}
    checkpoints.gguf(tmp_path / "m-00002-of-00002.gguf", {}, other)
    with pytest.raises(OutputError, match="one of 2 parts"):
        converted(first, tmp_path / "new.gguf", tokenizer=tokenizer_file)
    with pytest.raises(InputError, match="is not the first part"):
        converted(
            tmp_path / "m-00002-of-00002.gguf",
            tmp_path / "n-00002-of-00002.gguf",
            tokenizer=tokenizer_file,
        )
    out = tmp_path / "n-00001-of-00002.gguf"
    result = converted(first, out, tokenizer=tokenizer_file)
    assert "the other part stays as it is" in result.notes[0]
    os.link(tmp_path / "m-00002-of-00002.gguf", tmp_path / "n-00002-of-00002.gguf")
    assert results(opened(out), "ok")["constants in the file"][0] == "9 of 9"


def test_a_file_that_is_cut_off_is_refused(
    tmp_path: Path, lacking: Written, tokenizer_file: Path
) -> None:
    with lacking.path.open("r+b") as file:
        file.truncate(lacking.path.stat().st_size - 4096)
    with pytest.raises(EngramError, match="ends too early"):
        converted(lacking.path, tmp_path / "new.gguf", tokenizer=tokenizer_file)

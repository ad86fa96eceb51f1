"""Every format that can be read from afar gives the same through a web server as from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints, small_artifacts
from quantised_bundles import quantised_bundle
from remote.server import Behaviour
from table.tables import build

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.to import convert
from engram_cli.commands.inspect.command import inspect
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.reading import InspectRequest, VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import InputError
from engram_cli.formats import FORMATS
from engram_cli.remote.locate import count_read, locate
from engram_cli.remote.path import RemotePath
from engram_cli.remote.session import BLOCK_BYTES
from engram_cli.rows import distant
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.compress import CompressedVocab

# They have no vectors to compare; test_everything.py reads them.
WITHOUT_VECTORS = {"statistics"}
Write = Callable[[Path, CompressedVocab, Path], Path]


def _with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def _row264(folder: Path, vocab: CompressedVocab, _: Path) -> Path:
    made = checkpoints.deepseek_gguf(folder.parent / "m.gguf", vocab, "llama.cpp")
    convert(ConvertRequest(source=made.path, to="row264", out=folder))
    return folder


def _pleo(folder: Path, _: CompressedVocab, __: Path) -> Path:
    folder.mkdir()
    return small_artifacts.pleo(folder / "m.pleo", np.array([7, 3]), np.ones((2, 4)))


def _torch(folder: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    made = small_artifacts.demo(folder.parent / "demo-of-torch", vocab)
    folder.mkdir()
    out = folder / "m.pt"
    convert(ConvertRequest(source=made.path, to="demo", out=out, tokenizer=tokenizer))
    return out


def _gguf(dialect: str) -> Write:
    def write(folder: Path, vocab: CompressedVocab, _: Path) -> Path:
        folder.mkdir()
        return checkpoints.deepseek_gguf(folder / "m.gguf", vocab, dialect).path

    return write


def _table(folder: Path, _: CompressedVocab, __: Path) -> Path:
    build(folder)
    return folder


WRITERS: dict[str, tuple[str, Write]] = {
    "row264": ("row264", _row264),
    "table": ("table", _table),
    "bundle fp8": ("bundle", lambda f, v, t: quantised_bundle(f, v, "fp8")),
    "bundle int8": ("bundle", lambda f, v, t: quantised_bundle(f, v, "int8")),
    "deepseek": ("deepseek-v4.1", lambda f, v, t: checkpoints.deepseek_v41(f, v, t).path),
    "qwen": ("qwen-ple", lambda f, v, t: checkpoints.qwen_ple(f).path),
    "qwen fp8": (
        "qwen-ple",
        lambda f, v, t: checkpoints.qwen_ple(f, dtype="float8_e4m3fn").path,
    ),
    "longcat": ("longcat", lambda f, v, t: checkpoints.longcat(f).path),
    "gguf": ("gguf", _gguf("llama.cpp")),
    "gguf, scales apart": ("gguf", _gguf("upper case")),
    "engramdb": ("engramdb", lambda f, v, t: small_artifacts.store(f).path),
    "overlay": ("overlay", _pleo),
    "engram-peft": (
        "engram-peft",
        lambda f, v, t: _with_tokenizer(small_artifacts.engram_peft(f, v).path, t),
    ),
    "torch": ("demo", _torch),
    "demo": ("demo", lambda f, v, t: _with_tokenizer(small_artifacts.demo(f, v).path, t)),
}


def test_every_format_is_here() -> None:
    assert {kind for kind, _ in WRITERS.values()} | WITHOUT_VECTORS == set(FORMATS)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_as_from_the_disk(
    name: str,
    server: Behaviour,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distant, "GAP_BYTES", 0)
    kind, write = WRITERS[name]
    path = write(server.folder / "it", small_vocab, tokenizer_file)
    local: Any = find_artifact(path).open()
    remote = locate(Path(f"{server.address}/{path.relative_to(server.folder)}"))
    assert isinstance(remote, RemotePath)
    found = find_artifact(remote)
    source: Any = found.open()
    assert found.kind == kind == find_artifact(path).kind
    assert source.layout.fingerprint == local.layout.fingerprint
    assert (source.layers, source.dim, source.dtype) == (local.layers, local.dim, local.dtype)
    for more in ("dialect", "checks"):
        assert getattr(source, more, None) == getattr(local, more, None)
    sizes = [file.stat().st_size for file in server.folder.rglob("*") if file.is_file()]
    whole = sum(size for size in sizes if size <= 2**20)  # configs, tokenizer, small files
    assert server.sent <= whole + BLOCK_BYTES * len(sizes)
    for layer in local.layers:
        rows = local.layout.layer(layer).rows
        ids = np.random.default_rng(0).integers(0, rows, 20)
        before = server.sent
        stored, scales = source.stored(layer, ids)
        expected, expected_scales = local.stored(layer, ids)
        assert np.array_equal(stored, expected)
        assert (scales is None) == (expected_scales is None)
        wanted = len(np.unique(ids)) * stored[0].nbytes
        if scales is not None:
            assert np.array_equal(scales, expected_scales)
            wanted += len(np.unique(ids)) * scales[0].nbytes if len(scales) > 1 else 0
        assert server.sent - before == wanted
        assert np.array_equal(source.vectors(layer, ids), local.vectors(layer, ids))
        for part in (ROWS, SCALES) if source.spans(layer, SCALES) else (ROWS,):
            assert np.array_equal(
                source.lines(layer, part, 1, rows - 1), local.lines(layer, part, 1, rows - 1)
            )
            pieces = [values for _, values in source.chunks(layer, part)]
            assert np.array_equal(np.concatenate(pieces), local.lines(layer, part, 0, rows))
    read = count_read(remote, None)
    assert read is not None
    assert read.bytes == server.sent
    answered = [asked for asked in server.asked if asked[0] in ("HEAD", "GET")]
    assert read.requests is not None
    assert read.requests <= len(answered)


def test_rows_of_a_table_behind_an_address_are_read_when_asked_for(server: Behaviour) -> None:
    build(server.folder / "t.zarr")
    request = InspectRequest(path=Path(f"{server.address}/t.zarr"))
    assert inspect(request).columns == ()
    local = inspect(InspectRequest(path=server.folder / "t.zarr"))
    assert inspect(replace(request, rows=True)).columns == local.columns != ()
    assert verify(VerifyRequest(path=request.path)).ok


def test_a_folder_of_gguf_files_says_so(server: Behaviour, small_vocab: CompressedVocab) -> None:
    checkpoints.deepseek_gguf(server.folder / "m.gguf", small_vocab, "llama.cpp")
    for path in (server.folder, locate(Path(server.address))):
        with pytest.raises(InputError) as caught:
            find_artifact(path)
        assert caught.value.hint == f"give one of its GGUF files, such as {path}/m.gguf"

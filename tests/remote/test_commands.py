"""The commands with sources behind addresses: what they read, say and exit with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.conftest import Engram
from formats import checkpoints, small_artifacts
from remote.server import Behaviour
from test_files import contents

from engram_cli import inspect, lookup
from engram_cli.commands.requests.reading import InspectRequest, LookupRequest
from engram_cli.formats.model_folder import bare_map
from engram_cli.remote.session import BLOCK_BYTES
from engram_cli.vocab.compress import CompressedVocab

pytest_plugins = ["cli.conftest"]


@pytest.fixture
def deepseek(server: Behaviour, small_vocab: CompressedVocab, tokenizer_file: Path) -> str:
    """The address of a small V4.1 folder with its tokenizer."""
    checkpoints.deepseek_v41(server.folder / "v41", small_vocab, tokenizer_file)
    return f"{server.address}/v41"


def both(engram: Engram, command: str, address: str, local: Path, *options: str) -> Any:
    """Return what a command read behind an address; else it says the same of the path."""
    texts = [engram(command, where, *options, "--json") for where in (address, local)]
    assert [done.code for done in texts] == [0, 0], texts[0].err
    far, near = (json.loads(done.out.replace(address, f"{local}")) for done in texts)
    read, _ = far.pop("read"), near.pop("read")
    for name in ("seconds", "files", "stored_bytes", "facts"):  # a server shows no sizes of others
        assert (name in far) == (name in near)
        far.pop(name, None)
        near.pop(name, None)
    assert far == near
    return read


def test_inspect(engram: Engram, server: Behaviour, deepseek: str) -> None:
    read = both(engram, "inspect", deepseek, server.folder / "v41")
    assert read == {"bytes": server.sent, "requests": len(server.asked)}
    assert read["requests"] < 25
    text = engram("inspect", deepseek)
    assert f"{read['bytes']:,} bytes) in {read['requests']} requests" in text.out
    assert f"path              {deepseek}" in text.out


def test_lookup_and_verify(engram: Engram, server: Behaviour, deepseek: str) -> None:
    read = both(engram, "lookup", deepseek, server.folder / "v41", "apple pie")
    assert read["bytes"] == server.sent
    before = server.sent
    read = both(engram, "verify", deepseek, server.folder / "v41")
    assert read["bytes"] == server.sent - before
    done = engram("lookup", deepseek, "apple", "--tokenizer", f"{deepseek}/tokenizer.json")
    assert done.code == 0
    assert "tokenizer: " + deepseek in done.err


def test_golden_and_convert(engram: Engram, server: Behaviour, deepseek: str) -> None:
    for name, where in (("far", deepseek), ("near", server.folder / "v41")):
        assert engram("golden", where, "--out", f"{name}.json").code == 0
        assert engram("convert", where, "--to", "table", "--out", f"{name}.zarr").code == 0
    far, near = (json.loads((engram.folder / f"{n}.json").read_text()) for n in ("far", "near"))
    assert far.pop("source", None) is None or near.pop("source", None) is not None
    assert far == near
    digests = [json.loads(engram("inspect", f"{n}.zarr", "--json").out)["digests"] for n in
               ("far", "near")]  # fmt: skip
    assert digests[0] == digests[1]


def test_gguf_keys(engram: Engram, server: Behaviour, small_vocab: CompressedVocab) -> None:
    made = checkpoints.deepseek_gguf(server.folder / "m.gguf", small_vocab, "llama.cpp")
    address = f"{server.address}/m.gguf"
    for name, where in (("far", address), ("near", made.path)):
        done = engram("convert", where, "--to", "gguf", "--dialect", "ds4", "--out", f"{name}.gguf")
        assert done.code == 0, done.err
    far, near = ((engram.folder / f"{name}.gguf").read_bytes() for name in ("far", "near"))
    assert far == near


@pytest.mark.parametrize("to", ["engramdb", "plepatch", "engram-peft", "demo", "torch"])
def test_to_the_formats_of_others(
    engram: Engram, server: Behaviour, small_vocab: CompressedVocab, tokenizer_file: Path, to: str
) -> None:
    """The same bytes as from the disk, with what lies next to the rows."""
    options: tuple[object, ...] = ()
    if to in ("engramdb", "plepatch"):
        checkpoints.qwen_ple(server.folder / "m")
        options = ("--rows", "3:9") if to == "plepatch" else ()
    elif to == "engram-peft":
        changes = {"enable_tokenizer_compression": False}
        small_artifacts.engram_peft(server.folder / "m", bare_map(300), pad_id=7, changes=changes)
    else:
        small_artifacts.demo(server.folder / "m", small_vocab)
        options = ("--tokenizer", tokenizer_file)
    ending = {"plepatch": ".plepatch", "demo": ".safetensors", "torch": ".pt"}.get(to, "")
    for name, where in (("far", f"{server.address}/m"), ("near", server.folder / "m")):
        kind = "demo" if to == "torch" else to
        done = engram("convert", where, "--to", kind, "--out", f"{name}/m{ending}", *options)
        assert done.code == 0, done.err
    assert contents(engram.folder / "far") == contents(engram.folder / "near")
    assert contents(engram.folder / "far")


def test_errors_are_one_line_and_exit_with_2(engram: Engram, server: Behaviour) -> None:
    for address, message in (
        (f"{server.address}/m.gguf", "does not exist"),
        (f"{server.address}/folder", "is not a table"),
        ("http://127.0.0.1:1/m.gguf", "the connection is refused"),
        ("hf://nothing", "names no repository"),
    ):
        for command in ("inspect", "verify", "lookup"):
            done = engram(command, address, *(["a"] if command == "lookup" else []))
            assert done.code == 2
            assert message in done.error_line
    assert list(engram.folder.iterdir()) == []


def test_rows_of_a_table_of_98_gb(
    server: Behaviour, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """Only headers, the config, the tokenizer and the rows of the text are read."""
    written = checkpoints.deepseek_v41(
        server.folder / "m",
        small_vocab,
        tokenizer_file,
        sparse=True,
        dim=256,
        rows_per_head=16_000_000,
    )
    assert sum(path.stat().st_size for path in written.path.iterdir()) > 200 * 10**9
    address = Path(f"{server.address}/m")
    result = inspect(InspectRequest(path=address))
    assert all(check.result != "differs" for check in result.checks)
    tokenizer = tokenizer_file.stat().st_size
    assert server.sent < tokenizer + 5 * BLOCK_BYTES
    before = server.sent
    found = lookup(LookupRequest(path=address, ids=(100, 200, 300), layer=3))
    rows = 3 * 24 * (256 + 8)
    assert server.sent - before < tokenizer + 5 * BLOCK_BYTES + rows
    assert found.read is not None
    assert found.read.bytes == server.sent - before
    norms = [head.norm for token in found.tokens for order in token.orders for head in order.heads]
    assert np.isfinite(np.array(norms, dtype=np.float64)).all()

"""engram convert, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import Engram
from formats import checkpoints
from table.tables import build

from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture
def folder(engram: Engram) -> Engram:
    build(engram.folder / "t.zarr", dim=64, tokens=3)
    return engram


def test_a_table_is_converted_and_converted_back(folder: Engram) -> None:
    planned = folder("convert", "t.zarr", "--dtype", "int4", "--out", "u.zarr", "--dry-run")
    assert planned.code == 0
    assert "would write" in planned.out
    assert not (folder.folder / "u.zarr").exists()
    done = folder("convert", "t.zarr", "--dtype", "int4", "--out", "u.zarr")
    assert done.code == 0, done.err
    assert "424 of 64 x float32, now int4" in done.out
    assert "256, now 36" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    back = folder("convert", "u.zarr", "--dtype", "bfloat16", "-o", "v.zarr", "--json")
    found = json.loads(back.out)
    assert found["plan"]["dtype"] == "bfloat16"
    # An int4 item times its scale needs no more bits than bfloat16 and a rounding.
    assert all(each["relative"] < 2**-8 for each in found["differences"])


def test_fp8_takes_a_scale(folder: Engram) -> None:
    done = folder("convert", "t.zarr", "--dtype", "fp8", "-o", "u.zarr", "--scale", "0.0003")
    assert done.code == 0, done.err
    refused = folder("convert", "t.zarr", "--dtype", "int8", "-o", "v.zarr", "--scale", "1")
    assert refused.code == 2
    assert "int8 takes no scale" in refused.error_line


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("none.zarr", "--dtype", "int8", "-o", "u.zarr"), "no table at none.zarr"),
        (("t.zarr", "--dtype", "int3", "-o", "u.zarr"), "unknown dtype 'int3'"),
        (("t.zarr", "--dtype", "float32", "-o", "u.zarr"), "is float32 already"),
        (("t.zarr", "--dtype", "int8", "-o", "t.zarr", "--force"), "the table to convert"),
    ],
)
def test_bad_input_is_one_line(folder: Engram, arguments: tuple[str, ...], match: str) -> None:
    done = folder("convert", *arguments)
    assert done.code == 2
    assert match in done.error_line


def test_attach_takes_a_converted_table(folder: Engram) -> None:
    (folder.folder / "ckpt").mkdir()
    config = {"model_type": "x", "hidden_size": 8, "num_hidden_layers": 4}
    (folder.folder / "ckpt" / "config.json").write_text(json.dumps(config))
    assert folder("convert", "t.zarr", "--dtype", "fp8_e8m0", "-o", "u.zarr").code == 0
    plan = folder("attach", "ckpt", "--table", "u.zarr", "--reference", "--dry-run")
    assert "fits" in plan.out
    assert not (folder.folder / "ckpt" / "engram").exists()
    done = folder("attach", "ckpt", "--table", "u.zarr", "--reference")
    assert done.code == 0
    assert "x fp8_e8m0 each" in done.out
    assert "that stay in ../../u.zarr" in done.out


def test_keys_of_a_gguf_file_are_checked_and_written(
    engram: Engram, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    lacks = (".engram.primes", ".engram.token_map")
    checkpoints.deepseek_gguf(engram.folder / "m.gguf", small_vocab, "llama.cpp", leave_out=lacks)
    given = ("--to", "gguf", "--tokenizer", str(tokenizer_file))
    checked = engram("convert", "m.gguf", *given, "--check")
    assert checked.code == 1
    assert "2 of 9 entries change" in checked.out
    done = engram("convert", "m.gguf", *given, "-o", "n.gguf")
    assert done.code == 0, done.err
    assert "read again, equal to the source" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    again = engram("convert", "n.gguf", *given, "--check", "--json")
    assert again.code == 0
    assert {each["action"] for each in json.loads(again.out)["changes"]} == {"kept"}
    copied = engram("convert", "n.gguf", "--to", "table", "-o", "t.zarr")
    assert "copied as they are stored, read again and equal" in copied.out

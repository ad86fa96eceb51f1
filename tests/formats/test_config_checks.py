"""Checks of tokens, keys, dtypes and modules: each finds the fault that it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.checkpoints import gguf

from engram_cli.commands.artifact import find_artifact
from engram_cli.rows.gguf_file import read_gguf
from engram_cli.vocab.compress import CompressedVocab


def results(path: Path, tokenizer: Path | None = None) -> dict[str, tuple[str, str]]:
    source: Any = find_artifact(path).open(tokenizer=tokenizer)
    return {check.name: (check.result, check.found) for check in source.checks}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((path / "config.json").read_text())
    change(config.get("text_config", config))
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("change", "name", "found"),
    [
        ({"image_token_id": 401}, "dead tokens", "401"),
        ({"engram_pad_token_id": 500}, "pad token", "500"),
        ({"quantization_config": {"quant_method": "fp8", "scale_fmt": "float"}},
         "layer 1: dtypes", "rows float8_e4m3fn, scales float8_e8m0fnu"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
         "layer 1: wkv.scale, shape", "5 x 48"),
    ],
)  # fmt: skip
def test_a_v41_config_that_does_not_fit(
    tmp_path: Path, small_vocab: CompressedVocab, change: dict[str, Any], name: str, found: str
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    assert results(made.path)[name][0] == "ok"
    edit(made.path, lambda config: config.update(change))
    result, said = results(made.path)[name]
    assert result == "differs"
    assert said.startswith(found)


def test_other_quantisation_is_undecided(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    edit(made.path, lambda config: config.update(quantization_config={"quant_method": "awq"}))
    assert results(made.path)["layer 1: dtypes"][0] == "undecided"
    edit(made.path, lambda config: config.pop("quantization_config"))
    assert results(made.path)["layer 1: dtypes"][0] == "undecided"


def test_a_pad_token_is_one_of_the_tokenizer(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    assert results(made.path)["pad token"] == ("ok", f"2, compressed {small_vocab.lookup[2]}")


@pytest.mark.parametrize(
    ("change", "name", "found"),
    [
        ({"image_token_id": 300}, "dead tokens", "300"),
        ({"ple_embed_dim": 1600}, "layer 2: rows, shape", "544 x 160"),
        ({"quantization_config": {"quant_method": "fp8"}}, "layer 2: dtypes", "rows bfloat16"),
    ],
)
def test_a_qwen_config_that_does_not_fit(
    tmp_path: Path, change: dict[str, Any], name: str, found: str
) -> None:
    path = checkpoints.qwen_ple(tmp_path / "m").path
    assert results(path)[name][0] == "ok"
    edit(path, lambda config: config.update(change))
    assert results(path)[name] == ("differs", found)


def test_keys_that_lack_are_named(tmp_path: Path) -> None:
    path = checkpoints.qwen_ple(tmp_path / "m").path
    edit(path, lambda config: config.pop("ple_embed_dim"))
    assert results(path)["config keys"] == ("differs", "missing: ple_embed_dim")


def test_a_part_of_a_module(tmp_path: Path) -> None:
    """Rows alone are no fault, but a module without its convolution is one."""
    path = checkpoints.qwen_ple(tmp_path / "m").path
    second = path / "model-00002-of-00002.safetensors"
    index = path / "model.safetensors.index.json"
    for part in ("conv1d", "key_proj", "value_proj", "norm_key", "norm_query", "norm_conv"):
        for file in (second, index):
            raw = file.read_bytes()
            file.write_bytes(raw.replace(f"ple.{part}.".encode(), f"plx.{part}.".encode()))
        result, found = results(path)["layer 2: module"]
        if part == "conv1d":
            assert (result, found) == ("differs", "missing, of the module: conv1d.weight")
    assert (result, found) == ("undecided", "rows alone")


def test_more_tokens_than_the_embedding_has_rows(tmp_path: Path, tokenizer_file: Path) -> None:
    path = checkpoints.longcat(tmp_path / "m").path
    assert results(path)["token ids"][0] == "undecided"
    assert results(path, tokenizer_file)["token ids"] == ("differs", "50")
    edit(path, lambda config: config.update(torch_dtype="float16"))
    assert results(path)["dtypes"] == ("differs", "bfloat16")


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A GGUF file with other keys."""
    file = read_gguf(path)
    keys = dict(file.keys)
    keys["tokenizer.ggml.tokens"] = ["a"] * 401
    change(keys)
    tensors = {}
    for name, tensor in file.tensors.items():
        raw = np.fromfile(path, np.uint8, tensor.nbytes or 0, offset=tensor.begin)
        values = raw if tensor.type == "int8" else raw.view(tensor.type)
        tensors[name] = tensor.type, values.reshape(tensor.shape)
    return gguf(path, keys, tensors)


@pytest.mark.parametrize(
    ("dialect", "key", "value", "name", "found"),
    [
        ("ds4", "deepseek41.engram.encoding", "conversion_underway", "encoding",
         "conversion_underway"),
        ("ds4", "deepseek41.engram.rows", np.array([3698, 9], "<u4"), "rows of the keys",
         "3698, 9"),
        ("llama.cpp", "deepseek41.engram.key_length", 128, "layer 1: values a row", "256"),
        ("llama.cpp", "deepseek41.image_token_id", 900, "dead tokens", "900"),
        ("llama.cpp", "deepseek41.engram.pad_id", 9, "compressed pad id", "9"),
    ],
)  # fmt: skip
def test_keys_of_a_gguf_file_that_do_not_fit(
    tmp_path: Path, small_vocab: CompressedVocab, dialect: str, key: str, value: Any, name: str,
    found: str,
) -> None:  # fmt: skip
    path = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, dialect).path
    rewritten(path, lambda keys: None)
    before = results(path)
    assert not {check for check, (result, _) in before.items() if result == "differs"}
    rewritten(path, lambda keys: keys.update({key: value}))
    assert results(path)[name] == ("differs", found)

"""Peers read what convert writes, and what peers write is read; the list is in interop.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints, interop
from formats.converted import converted, stored, table

from engram_cli.commands.artifact import find_artifact
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.compress import CompressedVocab

torch = pytest.importorskip("torch")
INDEX = "model.safetensors.index.json"


def test_every_test_of_the_list_is_there() -> None:
    assert not interop.missing()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' Qwen4-Exp with two n-gram layers, and the checkpoint that it saved."""
    pytest.importorskip("transformers.models.qwen4_exp")
    import own_tables

    model = own_tables.qwen()
    return model, own_tables.save(model, tmp_path_factory.mktemp("qwen") / "m")


def logits(model: Any) -> Any:
    ids = torch.tensor([[5, 17, 7, 17, 5, 200, 5, 17, 299, 0]])
    with torch.no_grad():
        return model(ids).logits


def test_a_checkpoint_that_transformers_saved(saved: tuple[Any, Path]) -> None:
    model, path = saved
    source = find_artifact(path).open()
    assert not [check for check in source.checks if check.result == "differs"]
    for layer in source.layers:
        own = model.model.layers[layer - 1].ple.ple_embedding
        assert np.array_equal(stored(source, layer, ROWS), own.ngram_embedding.weight.detach())
        assert source.layout.layer(layer).multipliers == tuple(own.layer_multipliers.tolist())


@pytest.mark.parametrize("way", ["folder", "table", "bfloat16"])
def test_transformers_loads_a_converted_table(
    saved: tuple[Any, Path], tmp_path: Path, way: str
) -> None:
    """The n-gram layers of convert, and the rest of the model: the same logits."""
    import own_tables
    from safetensors.torch import load_file, save_file

    model, path = saved
    source, options = path, {}
    if way == "table":
        source = tmp_path / "t.zarr"
        table(path, source)
    elif way == "bfloat16":
        options = {"dtype": "bfloat16"}
    out = tmp_path / "new"
    converted(source, "qwen-ple", out, **options)
    tensors = load_file(path / own_tables.WEIGHTS)
    index = json.loads((out / INDEX).read_text())
    if way == "table":  # of a table alone, names are those of the release, and no module is known
        for name, file in list(index["weight_map"].items()):
            index["weight_map"].pop(name)
            index["weight_map"][name.replace("language_model.", "")] = file
        renamed = {
            name.replace("language_model.", ""): tensor
            for file in set(index["weight_map"].values())
            for name, tensor in load_file(out / file).items()
        }
        save_file(renamed, out / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
        shutil.copy(path / "config.json", out / "config.json")
    ours = set(index["weight_map"])
    rest = {n: t for n, t in tensors.items() if n not in ours and ".shard_" not in n}
    assert any(".ple.key_proj" in name for name in (ours if way != "table" else rest))
    save_file(rest, out / "rest.safetensors", metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(rest, "rest.safetensors")
    (out / INDEX).write_text(json.dumps(index))
    shards = sum(".layers.1." in name and ".shard_" in name for name in ours)
    loaded = own_tables.whole_qwen(out, torch.float32, split_ngram_parts=shards)
    if way != "bfloat16":
        # Weights at other offsets of a file are aligned differently, which moves the last bit.
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
        return
    for place in (1, 2):
        before, after = (
            each.model.layers[place].ple.ple_embedding.ngram_embedding.weight
            for each in (model, loaded)
        )
        assert torch.equal(before.to(torch.bfloat16), after.to(torch.bfloat16))


def test_a_file_that_the_package_gguf_wrote(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    """Rows that its quantiser stored as Q8_0, under the keys of llama.cpp, are its own values."""
    gguf = pytest.importorskip("gguf")
    layout = checkpoints.hash_layout(
        "deepseek-v4.1", small_vocab, rows_per_head=29, layers=(1, 3), pad_id=2
    )
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "deepseek41")
    start, arrays = "deepseek41.engram.", gguf.GGUFValueType
    writer.add_array(f"{start}layer_ids", [1, 3])
    for name, value in (("head_count", 8), ("key_length", 64), ("max_ngram_size", 4),
                        ("pad_id", layout.filler_id)):  # fmt: skip
        writer.add_uint32(start + name, value)
    for name, field in (("multipliers", "multipliers"), ("primes", "moduli"),
                        ("offsets", "offsets")):  # fmt: skip
        values = [value for entry in layout.layers for value in getattr(entry, field)]
        writer.add_key_value(start + name, values, arrays.ARRAY, arrays.UINT64)
    writer.add_array(f"{start}token_map", small_vocab.lookup.tolist())
    random, kind, wanted = np.random.default_rng(0), gguf.GGMLQuantizationType.Q8_0, {}
    for entry in layout.layers:
        values = random.standard_normal((entry.rows, 64)).astype(np.float32)
        rows = gguf.quants.quantize(values, kind)
        wanted[entry.layer] = gguf.quants.dequantize(rows, kind)
        writer.add_tensor(f"blk.{entry.layer}.engram_embd.weight", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = find_artifact(tmp_path / "w.gguf").open()
    assert not [check.name for check in source.checks if check.result == "differs"]
    assert source.layout.fingerprint == layout.fingerprint
    for layer, values in wanted.items():
        assert np.array_equal(source.vectors(layer, np.arange(len(values))), values)


def test_safetensors_reads_a_converted_table(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    from safetensors import safe_open

    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    table(made.path, tmp_path / "t.zarr")
    converted(tmp_path / "t.zarr", "deepseek-v4.1", tmp_path / "n")
    places = json.loads((tmp_path / "n" / INDEX).read_text())["weight_map"]
    for layer in (1, 3):
        name = f"layers.{layer}.engram.embed"
        with safe_open(tmp_path / "n" / places[f"{name}.weight"], "pt") as file:
            rows, scales = file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.scale")
        assert (rows.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float8_e8m0fnu)
        assert np.array_equal(rows.view(torch.uint8).numpy(), made.rows[layer])
        assert np.array_equal(scales.view(torch.uint8).numpy(), made.scales[layer])


def test_files_that_safetensors_wrote(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    from safetensors.torch import load_file, save_file

    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    for file in made.path.glob("*.safetensors"):
        save_file(load_file(file), file)
    source = find_artifact(made.path).open()
    assert not [check.name for check in source.checks if check.result == "differs"]
    for layer in (1, 3):
        assert np.array_equal(stored(source, layer, ROWS), made.rows[layer])
        assert np.array_equal(stored(source, layer, SCALES), made.scales[layer])

"""Writes small checkpoints with the names, dtypes, nesting and shards of the published ones.

Sparse ones have the true sizes: holes cost no disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import INDEX, TensorSpec, encode_header
from engram_cli.vocab.compress import CompressedVocab

Array = NDArray[Any]
HIDDEN, STREAMS = 32, 4


@dataclass(kw_only=True)
class Writer:
    """Collects tensors by file; `None` for values is a hole of zeros."""

    folder: Path
    files: dict[str, dict[str, tuple[TensorSpec, Array | None]]] = field(default_factory=dict)

    def add(self, file: str, name: str, dtype: str, values: Array | None, *shape: int) -> None:
        """Add a tensor; the shape is that of `values` where it is not given."""
        given = shape or (values.shape if values is not None else ())
        spec = TensorSpec(name=name, dtype=dtype, shape=tuple(given))
        self.files.setdefault(file, {})[name] = spec, values

    def write(self, config: Mapping[str, Any], *, index: bool = True) -> Path:
        """Write the files, the index and config.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in self.files.items():
            header = encode_header([spec for spec, _ in tensors.values()], {"format": "pt"})
            with (self.folder / name).open("wb") as file:
                file.write(header)
                end = len(header)
                for spec, values in tensors.values():
                    if values is not None:
                        file.seek(end)
                        stored = np.ascontiguousarray(values, dtype=physical_dtype(spec.dtype))
                        file.write(stored.tobytes())
                    end += spec.nbytes
                file.truncate(end)
        if index:
            places = {name: file for file, own in self.files.items() for name in own}
            text = json.dumps({"metadata": {}, "weight_map": places})
            (self.folder / INDEX).write_text(text)
        (self.folder / "config.json").write_text(json.dumps(config))
        return self.folder


def bfloat16(values: Array) -> Array:
    """Return float32 values that are exact in bfloat16 as their upper halves."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint that was written: its layout, and by layer its rows as they are stored."""

    path: Path
    layout: HashLayout
    rows: dict[int, Array]
    scales: dict[int, Array]


def deepseek_v41(
    folder: Path,
    vocab: CompressedVocab,
    tokenizer: Path | None,
    *,
    nested: bool = True,
    sparse: bool = False,
    changes: Mapping[str, Any] | None = None,
    dim: int = 64,
    rows_per_head: int = 97,
) -> Written:
    """A DeepSeek-V4.1 folder: two layers, each in a file of its own; `changes`: of the config."""
    layers = (1, 3)
    layout = hash_layout(
        "deepseek-v4.1", vocab, rows_per_head=rows_per_head, layers=layers, pad_id=2
    )
    config: dict[str, Any] = {
        "engram_layer_ids": list(layers),
        "engram_num_embeddings": [entry.rows for entry in layout.layers],
        "engram_max_ngram_size": 4,
        "engram_vocab_size": rows_per_head,
        "engram_n_heads": 8,
        "engram_head_dim": dim,
        ("engram_pad_token_id" if nested else "engram_pad_id"): 2,
        "engram_compressed_vocab_size": vocab.size,
        "vocab_size": vocab.vocab_size,
        "hidden_size": HIDDEN,
        "hc_mult": STREAMS,
        "quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0"},
    } | dict(changes or {})
    writer = Writer(folder=folder)
    random = np.random.default_rng(0)
    written: dict[str, dict[int, Array]] = {"rows": {}, "scales": {}}
    for place, entry in enumerate(layout.layers):
        file, start = f"model-0000{place + 1}-of-00002.safetensors", f"layers.{entry.layer}.engram."
        rows = scales = None
        if not sparse:
            rows = random.integers(0, 127, (entry.rows, dim), dtype=np.uint8)
            scales = random.integers(110, 130, (entry.rows, dim // 32), dtype=np.uint8)
            written["rows"][entry.layer], written["scales"][entry.layer] = rows, scales
        writer.add(file, f"{start}embed.weight", "float8_e4m3fn", rows, entry.rows, dim)
        writer.add(file, f"{start}embed.scale", "float8_e8m0fnu", scales, entry.rows, dim // 32)
        out, width = HIDDEN * (STREAMS + 1), 24 * dim
        writer.add(file, f"{start}wkv.weight", "float8_e4m3fn", None, out, width)
        writer.add(file, f"{start}wkv.scale", "float8_e8m0fnu", None, out // 32, width // 32)
        for name in ("q_weight", "k_weight"):
            writer.add(file, start + name, "bfloat16", None, STREAMS, HIDDEN)
    whole = {"model_type": "deepseek_v41", "image_token_id": 3}
    path = writer.write({**whole, "text_config": config} if nested else {**whole, **config})
    if tokenizer is not None:
        shutil.copy(tokenizer, path / "tokenizer.json")
    return Written(path=path, layout=layout, rows=written["rows"], scales=written["scales"])


def qwen_ple(
    folder: Path,
    *,
    dtype: str = "bfloat16",
    shards: int = 4,
    stored: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Written:
    """A Qwen4-Exp folder: one layer, the first but one, its rows in shards over two files."""
    layout = hash_layout(
        "qwen-ple", vocab_size=300, eos_id=7, rows_per_head=97, layers=(2,), divisor=4 * 32
    )
    entry, dim = layout.layers[0], 160
    config = {
        "ple_layer_ids": [2],
        "ngram_size": 3,
        "heads_per_ngram": 8,
        "ngram_vocab_size_base": 97,
        "make_ngram_vocab_size_divisible_by": 128,
        "split_ngram_parts": shards,
        "eos_token_id": 7,
        "vocab_size": 300,
        "seed": 1234,
    } | dict(changes or {})
    writer, random = Writer(folder=folder), np.random.default_rng(1)
    start = "model.language_model.layers.1.ple.ple_embedding."
    if dtype == "bfloat16":
        rows = bfloat16(random.integers(-64, 64, (entry.rows, dim)) / 8)
        scales = np.empty(0)
    else:
        rows = random.integers(0, 127, (entry.rows, dim), dtype=np.uint8)
        scales = bfloat16(np.array([2.0**-12 * 1.5]))
        writer.add(
            "model-00002-of-00002.safetensors",
            f"{start}ngram_embedding.weight_scale",
            "bfloat16",
            scales,
        )
    for index, part in enumerate(np.split(rows, shards)):
        file = f"model-0000{1 + index % 2}-of-00002.safetensors"
        writer.add(file, f"{start}ngram_embedding.shard_{index}.weight", dtype, part)
    if stored:
        constants = {
            "layer_multipliers": entry.multipliers,
            "ngram_heads_vocab_sizes": entry.moduli,
            "ngram_heads_offsets": entry.offsets,
        }
        for name, values in constants.items():
            file = "model-00001-of-00002.safetensors"
            writer.add(file, start + name, "int64", np.array(values, dtype=np.int64))
    path = writer.write({"model_type": "qwen4_exp", "text_config": config})
    return Written(path=path, layout=layout, rows={2: rows}, scales={2: scales})


def longcat(folder: Path, *, old_names: bool = False, tables: int = 12) -> Written:
    """A LongCat folder: one file without an index."""
    layout = hash_layout("longcat", vocab_size=50, eos_id=2, rows_per_head=100)
    config = {
        ("oe_vocab_size_ratio" if old_names else "ngram_vocab_size_ratio"): 2,
        "emb_neighbor_num": 4,
        "emb_split_num": 4,
        "vocab_size": 50,
        "hidden_size": 96,
        "eos_token_id": 2,
    }
    writer, random, parts = Writer(folder=folder), np.random.default_rng(2), []
    for index, modulus in enumerate(layout.layers[0].moduli):
        parts.append(bfloat16(random.integers(-64, 64, (modulus, 8)) / 8))
        start = "model.ngram_embeddings."
        if index < tables:
            name = f"{start}embedders.{index}.weight"
            writer.add("model.safetensors", name, "bfloat16", parts[-1])
        writer.add(
            "model.safetensors", f"{start}post_projs.{index}.weight", "bfloat16", None, 96, 8
        )
    path = writer.write(config, index=False)
    return Written(path=path, layout=layout, rows={0: np.concatenate(parts)}, scales={})

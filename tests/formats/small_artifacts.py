"""Writes what other programs keep: state dicts, adapters, stores of bare rows, and overlays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from formats.checkpoints import Array, Writer, Written, bfloat16

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.lookup import VocabMap

HIDDEN, COPIES = 16, 2


def eighths(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Values float32 that bfloat16 holds exactly."""
    return random.integers(-64, 64, shape).astype(np.float32) / 8


def demo(
    folder: Path,
    vocab: CompressedVocab,
    *,
    layers: Sequence[int] = (1, 15),
    rows_per_head: int | Sequence[int] = (97, 211),
    orders: Sequence[int] = (2, 3),
    prefix: str = "layers.{}.engram.",
    dtype: str = "float32",
    leave_out: str = "",
) -> Written:
    """A state dict of the demo's modules; `leave_out`: the end of names that are missing."""
    layout = hash_layout(
        "engram-v1", vocab, layers=layers, rows_per_head=rows_per_head, orders=orders
    )
    writer, random, rows = Writer(folder=folder), np.random.default_rng(7), {}
    for entry in layout.layers:
        rows[entry.layer] = random.integers(-64, 64, (entry.rows, 8)).astype(np.float32) / 8
        if dtype == "bfloat16":
            rows[entry.layer] = bfloat16(rows[entry.layer])
        shapes: dict[str, tuple[str, Array | None, tuple[int, ...]]] = {
            "multi_head_embedding.embedding.weight": (dtype, rows[entry.layer], ()),
            "multi_head_embedding.offsets": ("int64", np.array(entry.offsets), ()),
            "value_proj.weight": (dtype, None, (HIDDEN, 8 * layout.columns)),
            "value_proj.bias": (dtype, None, (HIDDEN,)),
            "short_conv.conv.weight": (dtype, None, (COPIES * HIDDEN, 1, 4)),
        }
        for copy in range(COPIES):
            shapes[f"key_projs.{copy}.weight"] = (dtype, None, (HIDDEN, 8 * layout.columns))
            shapes[f"key_projs.{copy}.bias"] = (dtype, None, (HIDDEN,))
            for name in ("norm1", "norm2", "short_conv.norms"):
                shapes[f"{name}.{copy}.weight"] = (dtype, None, (HIDDEN,))
        for name, (kind, values, shape) in shapes.items():
            if not (leave_out and name.endswith(leave_out)):
                full = prefix.format(entry.layer) + name
                if values is None:
                    values = eighths(random, shape)
                    values = bfloat16(values) if kind == "bfloat16" else values
                writer.add("model.safetensors", full, kind, values)
    path = writer.write({}, index=False)
    (path / "config.json").unlink()
    return Written(path=path, layout=layout, rows=rows, scales={})


def pleo(path: Path, rows: Array, values: Array) -> Path:
    """A .pleo: row numbers int32[n], values float32[n, dim]."""
    head = b"PLEO" + np.array([len(rows), values.shape[1]], dtype="<u4").tobytes()
    path.write_bytes(head + rows.astype("<i4").tobytes() + values.astype("<f4").tobytes())
    return path


def plepatch(
    path: Path,
    rows: Array,
    payload: Array,
    *,
    dim: int,
    kind: int,
    manifest: bytes = b'{"format": "ple-overlay-v1", "note": "three towns"}',
    version: int = 1,
) -> Path:
    """A .plepatch: row numbers [n], payload uint8[n, bytes a row] of ggml's type `kind`."""
    head = bytearray(128)
    head[:8] = b"PLEOVLY1"
    head[8:10] = version.to_bytes(2, "little")
    head[12:16] = kind.to_bytes(4, "little")
    for place, value in ((16, dim), (24, payload.shape[1]), (32, len(rows)), (40, len(manifest))):
        head[place : place + 8] = value.to_bytes(8, "little")
    head[56:83] = b"per_layer_token_embd.weight"
    numbers = rows.astype("<u8").view(np.uint8).reshape(len(rows), 8)
    body = np.concatenate([numbers, payload], axis=1)
    path.write_bytes(bytes(head) + manifest + body.tobytes())
    return path


@dataclass(frozen=True, kw_only=True)
class WrittenStore:
    """A Store-I: its layout, its rows uint8[n, width] and what its bundle says."""

    path: Path
    layout: HashLayout
    rows: Array
    bundle: dict[str, Any]


def store(
    folder: Path,
    *,
    shards: int = 4,
    width: int = 16,
    ple: Mapping[str, Any] | None = None,
    place: str = ".",
) -> WrittenStore:
    """A Store-I of float8 rows with its bundle.json; `ple`: changes of what the bundle says."""
    layout = hash_layout("qwen-ple", vocab_size=300, eos_id=7, rows_per_head=97, divisor=128)
    entry = layout.layers[0]
    rows = np.random.default_rng(3).integers(0, 127, (entry.rows, width), dtype=np.uint8)
    (folder / place).mkdir(parents=True, exist_ok=True)
    for index, part in enumerate(np.split(rows, shards)):
        (folder / place / f"shard_{index:03d}.bin").write_bytes(part.tobytes())
    bundle = {
        "schema": "engramdb-bundle-v1",
        "id": "small",
        "memory": {
            "type": "store",
            "store": {
                "path": place,
                "shards": shards,
                "rows_per_shard": len(rows) // shards,
                "width": width,
            },
        },
        "ple": {
            "ple_embed_dim": 16 * width,
            "num_heads": 16,
            "ngram_size": 3,
            "heads_per_ngram": 8,
            "scale": 0.25,
            "eos": 7,
            "vocab_size": 300,
            "multipliers": list(entry.multipliers),
            "prime_sizes": list(entry.moduli),
            "offsets": list(entry.offsets),
        }
        | dict(ple or {}),
    }
    (folder / "bundle.json").write_text(json.dumps(bundle))
    return WrittenStore(path=folder, layout=layout, rows=rows, bundle=bundle)


def engram_peft(
    folder: Path,
    vocab: VocabMap,
    *,
    pad_id: int = 0,
    changes: Mapping[str, Any] | None = None,
    layers: tuple[int, int] = (1, 14),
) -> Written:
    """An adapter of engram-peft for the base vocabulary `vocab`; `changes`: of its config."""
    layout = hash_layout(
        "engram-peft", vocab, rows_per_head=(97, 211), layers=layers, pad_id=pad_id
    )
    config = {
        "model_type": "engram",
        "engram_vocab_size_per_ngram": [97 * 8 + 3, 211 * 8],
        "ngram_sizes": [2, 3],
        "n_head_per_ngram": 8,
        "embedding_dim": 128,
        "enable_tokenizer_compression": True,
        "target_layers": list(layers[::-1]),
        "hc_mult": COPIES,
        "conv_kernel_size": 4,
        "compressed_vocab_size": vocab.size,
        "pad_id": pad_id,
        "seed": 0,
        "hidden_size": HIDDEN,
        "engine": "deepseek",
        "table_spec": None,
    } | dict(changes or {})
    writer, random, rows = Writer(folder=folder), np.random.default_rng(9), {}
    file = "engram_adapters.safetensors"
    for entry in layout.layers:
        rows[entry.layer] = random.integers(-64, 64, (entry.rows, 8)).astype(np.float32) / 8
        start, offsets = f"{entry.layer}.multi_head_embedding.", np.array(entry.offsets)
        writer.add(file, f"{start}embedding.weight", "float32", rows[entry.layer])
        writer.add(file, f"{start}offsets", "int64", offsets)
        start = f"{entry.layer}."
        shapes: dict[str, tuple[int, ...]] = {
            "gating.w_v.weight": (HIDDEN, 128),
            "short_conv.conv.weight": (COPIES * HIDDEN, 1, 4),
        }
        for copy in range(COPIES):
            shapes[f"gating.w_k.{copy}.weight"] = (HIDDEN, 128)
            for name in ("gating.norm_h", "gating.norm_k", "short_conv.norms"):
                shapes[f"{name}.{copy}.weight"] = (HIDDEN,)
        for name, shape in shapes.items():
            writer.add(file, start + name, "float32", eighths(random, shape))
    path = writer.write(config, index=False)
    return Written(path=path, layout=layout, rows=rows, scales={})

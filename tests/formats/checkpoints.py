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
        "quantization_config": {
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [32, 32],
        },
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
        "ple_embed_dim": 16 * dim,
        "eos_token_id": 7,
        "vocab_size": 300,
        "seed": 1234,
        "image_token_id": 5,
    } | dict(changes or {})
    writer, random = Writer(folder=folder), np.random.default_rng(1)
    start = "model.language_model.layers.1.ple.ple_embedding."
    if dtype == "bfloat16":
        rows = bfloat16(random.integers(-64, 64, (entry.rows, dim)) / 8)
        scales = np.empty(0)
    elif dtype == "nvfp4":
        rows = random.integers(0, 256, (entry.rows, dim // 2), dtype=np.uint8)
        scales = random.integers(1, 0x7F, (entry.rows, dim // 16), dtype=np.uint8)
        config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    else:
        rows = random.integers(0, 127, (entry.rows, dim), dtype=np.uint8)
        scales = bfloat16(np.array([2.0**-12 * 1.5]))
        config["quantization_config"] = {"quant_method": "fp8"}
        writer.add(
            "model-00002-of-00002.safetensors",
            f"{start}ngram_embedding.weight_scale",
            "bfloat16",
            scales,
        )
    for index, part in enumerate(np.split(rows, shards)):
        file = f"model-0000{1 + index % 2}-of-00002.safetensors"
        name = f"{start}ngram_embedding.shard_{index}.weight"
        if dtype != "nvfp4":
            writer.add(file, name, dtype, part)
            continue
        own, factor = np.split(scales, shards)[index], np.array(0.001 * (index + 1), np.float32)
        writer.add(file, name, "uint8", part)
        writer.add(file, f"{name}_scale", "float8_e4m3fn", own)
        writer.add(file, f"{name}_scale_2", "float32", factor)
    if stored:
        constants = {
            "layer_multipliers": entry.multipliers,
            "ngram_heads_vocab_sizes": entry.moduli,
            "ngram_heads_offsets": entry.offsets,
        }
        for name, values in constants.items():
            file = "model-00001-of-00002.safetensors"
            writer.add(file, start + name, "int64", np.array(values, dtype=np.int64))
    width, module = 16 * dim, start.removesuffix("ple_embedding.")
    shapes: dict[str, tuple[int, ...]] = {
        "key_proj": (STREAMS * HIDDEN, width),
        "value_proj": (HIDDEN, width),
        "conv1d": (STREAMS * HIDDEN, 1, 4),
    } | dict.fromkeys(("norm_key", "norm_query", "norm_conv"), (STREAMS * HIDDEN,))
    for name, shape in shapes.items():
        file = "model-00002-of-00002.safetensors"
        writer.add(file, f"{module}{name}.weight", "bfloat16", None, *shape)
    path = writer.write({"model_type": "qwen4_exp", "text_config": config})
    return Written(path=path, layout=layout, rows={2: rows}, scales={2: scales})


def longcat(
    folder: Path, *, old_names: bool = False, tables: int = 12, random_projections: bool = False
) -> Written:
    """A LongCat folder: one file without an index; projections are zero unless they are random."""
    layout = hash_layout("longcat", vocab_size=50, eos_id=2, rows_per_head=100)
    config = {
        ("oe_vocab_size_ratio" if old_names else "ngram_vocab_size_ratio"): 2,
        "emb_neighbor_num": 4,
        "emb_split_num": 4,
        "vocab_size": 50,
        "hidden_size": 96,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    writer, random, parts = Writer(folder=folder), np.random.default_rng(2), []
    for index, modulus in enumerate(layout.layers[0].moduli):
        parts.append(bfloat16(random.integers(-64, 64, (modulus, 8)) / 8))
        start = "model.ngram_embeddings."
        if index < tables:
            name = f"{start}embedders.{index}.weight"
            writer.add("model.safetensors", name, "bfloat16", parts[-1])
        drawn = bfloat16(random.integers(-64, 64, (96, 8)) / 64) if random_projections else None
        name = f"{start}post_projs.{index}.weight"
        writer.add("model.safetensors", name, "bfloat16", drawn, 96, 8)
    path = writer.write(config, index=False)
    return Written(path=path, layout=layout, rows={0: np.concatenate(parts)}, scales={})


GGUF_TYPES = {"float32": 0, "float16": 1, "q8_0": 8, "int8": 24, "int32": 26, "int64": 27}
GGUF_TYPES |= {"bfloat16": 30, "q4_0": 2, "q4_k": 12, "q6_k": 14}
BLOCKS = {"q8_0": (32, 34), "q4_0": (32, 18), "q4_k": (256, 144), "q6_k": (256, 210)}


def gguf(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, tuple[str, Array]]) -> Path:
    """Write a GGUF file of version 3. Tensors are (type, stored bytes or values [rows, ...])."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return len(raw).to_bytes(8, "little") + raw

    def value(each: Any) -> bytes:
        if isinstance(each, str):
            return (8).to_bytes(4, "little") + text(each)
        if isinstance(each, int):
            return (4).to_bytes(4, "little") + each.to_bytes(4, "little")
        if isinstance(each, list):  # of texts
            parts = b"".join(map(text, each))
            return (
                (9).to_bytes(4, "little")
                + (8).to_bytes(4, "little")
                + len(each).to_bytes(8, "little")
                + parts
            )
        kind = {"<u4": 4, "<i4": 5, "<u8": 10}[each.dtype.str]
        head = (9).to_bytes(4, "little") + kind.to_bytes(4, "little")
        return head + len(each).to_bytes(8, "little") + each.tobytes()

    out = b"GGUF" + (3).to_bytes(4, "little")
    out += len(tensors).to_bytes(8, "little") + len(keys).to_bytes(8, "little")
    out += b"".join(text(name) + value(each) for name, each in keys.items())
    offset, data = 0, b""
    for name, (kind, values) in tensors.items():
        dims = [*values.shape[::-1]]
        if kind in BLOCKS:
            per, size = BLOCKS[kind]
            dims[0] = dims[0] // size * per
        out += text(name) + len(dims).to_bytes(4, "little")
        out += b"".join(int(dim).to_bytes(8, "little") for dim in dims)
        out += GGUF_TYPES[kind].to_bytes(4, "little") + offset.to_bytes(8, "little")
        raw = np.ascontiguousarray(values).tobytes()
        data += raw + bytes(-len(raw) % 32)
        offset = len(data)
    path.write_bytes(out + bytes(-len(out) % 32) + data)
    return path


def deepseek_gguf(
    path: Path, vocab: CompressedVocab, dialect: str, *, leave_out: tuple[str, ...] = ()
) -> Written:
    """A GGUF file of V4.1 in a dialect; `leave_out`: ends of the keys and tensors that lack."""
    layout = hash_layout("deepseek-v4.1", vocab, rows_per_head=97, layers=(1, 3), pad_id=2)
    random, rows, scales = np.random.default_rng(4), {}, {}
    for entry in layout.layers:
        rows[entry.layer] = random.integers(0, 127, (entry.rows, 256), dtype=np.uint8)
        scales[entry.layer] = random.integers(110, 130, (entry.rows, 8), dtype=np.uint8)
    layers = np.array([1, 3], dtype="<i4")
    flat = {
        "multipliers": np.array([m for e in layout.layers for m in e.multipliers], dtype="<u8"),
        "primes": np.array([m for e in layout.layers for m in e.moduli], dtype="<u8"),
        "offsets": np.array([m for e in layout.layers for m in e.offsets], dtype="<u8"),
        "token_map": vocab.lookup.astype("<i4"),
    }
    heights = np.array([entry.rows for entry in layout.layers], dtype="<u4")
    pad = layout.filler_id
    keys: dict[str, Any] = {"general.architecture": "deepseek41"}
    tensors: dict[str, tuple[str, Array]] = {}
    shape = {
        "deepseek41.engram.head_count": 8,
        "deepseek41.engram.key_length": 256,
        "deepseek41.engram.max_ngram_size": 4,
    }
    packed = {n: np.concatenate([rows[n], scales[n]], axis=1) for n in rows}
    if dialect in ("llama.cpp", "tensors"):
        keys |= {"deepseek41.engram.layer_ids": layers, **shape, "deepseek41.engram.pad_id": pad}
        if dialect == "llama.cpp":
            keys |= {f"deepseek41.engram.{name}": values for name, values in flat.items()}
        else:
            wide = {name: ("int64", values.astype("<i8")) for name, values in flat.items()}
            wide["token_map"] = ("int32", flat["token_map"])
            tensors |= {f"engram.{name}": each for name, each in wide.items()}
        for n in rows:
            tensors[f"blk.{n}.engram_embd.weight"] = "int8", packed[n]
            for part in ("wkv", "q", "k"):
                values = np.zeros((4, 8), np.float32)
                tensors[f"blk.{n}.engram_{part}.weight"] = "float32", values
    elif dialect == "ds4":
        start = "deepseek41.engram."
        keys |= {f"{start}encoding": "e4m3_e8m0_32_row264", f"{start}layer_ids": layers,
                 f"{start}rows": heights, f"{start}compressed_vocab_size": vocab.size,
                 f"{start}pad_id": pad, f"{start}token_map": flat["token_map"].astype("<u4"),
                 f"{start}primes": flat["primes"].astype("<u4"),
                 f"{start}multipliers": flat["multipliers"]}  # fmt: skip
        tensors |= {f"blk.{n}.engram_embd.weight": ("int8", packed[n]) for n in rows}
    elif dialect.startswith("upper case"):
        heads = {"upper case": "ENGRAM_EMBEDDING_COUNTS"}.get(dialect, "ENGRAM_NUM_EMBEDDINGS")
        keys |= {"ENGRAM_LAYERS": layers, "ENGRAM_NGRAM_SIZE": 4, "ENGRAM_HEAD_COUNT": 8,
                 "ENGRAM_HEAD_DIM": 256, "ENGRAM_COMPRESSED_VOCAB_SIZE": vocab.size,
                 "ENGRAM_PAD_TOKEN_ID": 2, heads: heights,
                 "ENGRAM_HEAD_BUCKET_SIZES": flat["primes"], "ENGRAM_HEAD_OFFSETS": flat["offsets"],
                 "ENGRAM_MULTIPLIERS": flat["multipliers"],
                 "ENGRAM_TOKEN_MAP": flat["token_map"]}  # fmt: skip
        for n in rows:
            tensors[f"blk.{n}.engram_embd"] = "int8", rows[n]
            tensors[f"blk.{n}.engram_embd_scale"] = "int8", scales[n]
    else:
        start = "deepseek4-engram."
        keys = {"general.architecture": "deepseek4-engram", f"{start}layers": layers,
                f"{start}row_counts": heights, f"{start}max_ngram_size": 4,
                f"{start}ngram_count": 3, f"{start}head_count": 8, f"{start}head_dim": 256,
                f"{start}vocab_size": vocab.vocab_size,
                f"{start}compressed_vocab_size": vocab.size, f"{start}pad_token_id": 2,
                f"{start}compressed_pad_id": pad}  # fmt: skip
        names = {"token_map": "token_map", "multipliers": "hash_multipliers",
                 "primes": "hash_primes", "offsets": "hash_offsets"}  # fmt: skip
        for name, other in names.items():
            is_map = name == "token_map"
            values = flat[name].astype("<i4" if is_map else "<i8")
            tensors[f"engram.{other}"] = "int32" if is_map else "int64", values
        for n in rows:
            blocks = [scales[n][:, :, None], rows[n].reshape(len(rows[n]), 8, 32)]
            packed[n] = np.concatenate(blocks, axis=2).reshape(len(rows[n]), 264)
            tensors[f"engram.{n}.embd.weight"] = "int8", packed[n]
    keys = {name: each for name, each in keys.items() if not name.endswith(leave_out or ("\0",))}
    tensors = {name: e for name, e in tensors.items() if not name.endswith(leave_out or ("\0",))}
    keys["tokenizer.ggml.tokens"] = ["a", "bc"] * 20
    gguf(path, keys, tensors)
    return Written(path=path, layout=layout, rows=rows, scales=scales)

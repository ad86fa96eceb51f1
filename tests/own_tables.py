"""Models that have a table of their own, and checkpoints of them as other programs save them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from formats.checkpoints import Array, Writer, bfloat16, gguf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM, PreTrainedModel
from transformers.models.qwen4_exp import modeling_qwen4_exp as qwen4
from transformers.utils import logging

from engram_cli.formats.model_folder import open_folder
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.vocab.compress import CompressedVocab

QWEN_VOCABULARY, QWEN_EOS = 300, 7
HIDDEN, STREAMS = 32, 4
IMAGE = 3  # V4.1's image token, which is dead
WEIGHTS = "model.safetensors"
PLACEMENTS = ("hbm", "host", "disk", "host=40MB,disk")


def qwen_config(**changes: Any) -> Any:
    """A small Qwen4-Exp with n-gram layers in decoder layers 1 and 2, their rows in 4 shards."""
    values: dict[str, Any] = {
        "vocab_size": QWEN_VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "hc_count": 2,
        "hc_lowrank": 4,
        "layer_types": ["linear_attention"] * 3 + ["indexed_attention"],
        "rms_norm_eps": 1e-5,
        "eos_token_id": QWEN_EOS,
        "pad_token_id": 2,
        "ple_layer_ids": [2, 3],
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 97,
        "split_ngram_parts": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "initializer_range": 0.2,
    }
    return qwen4.Qwen4ExpTextConfig(**values | changes)


def qwen(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """transformers' own class with random weights, those of its n-gram layers too."""
    torch.manual_seed(0)
    model = qwen4.Qwen4ExpForCausalLM(qwen_config(**changes)).eval()
    for name, parameter in model.named_parameters():
        if ".ple." in name:
            parameter.data.normal_(0, 0.3)
    return model.to(dtype)


def multimodal_qwen(ple_layers: list[int]) -> PreTrainedModel:
    """The same decoder inside transformers' multimodal class, whose config nests its own."""
    inner = qwen_config(ple_layer_ids=ple_layers).to_dict() | {"rope_parameters": None}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
              "out_hidden_size": 32, "num_position_embeddings": 16, "patch_size": 2}  # fmt: skip
    config = qwen4.Qwen4ExpConfig(
        text_config=inner, vision_config=vision, image_token_id=290, video_token_id=291,
        vision_start_token_id=292, vision_end_token_id=293,
    )  # fmt: skip
    torch.manual_seed(0)
    model = qwen4.Qwen4ExpForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if ".ple." in name:
            parameter.data.normal_(0, 0.3)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its load report and progress bars."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def save(model: PreTrainedModel, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(folder)
    return folder


def whole_qwen(folder: Path, dtype: torch.dtype, **changes: Any) -> PreTrainedModel:
    """The model of a checkpoint; `changes`: of its config."""
    config = qwen4.Qwen4ExpTextConfig.from_pretrained(folder, **changes)
    with quiet():
        return qwen4.Qwen4ExpForCausalLM.from_pretrained(folder, config=config, dtype=dtype).eval()


def bare_qwen(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a checkpoint without its n-gram layers, whose tensors are not loaded."""
    return whole_qwen(folder, dtype, ple_layer_ids=[])


def as_float8(folder: Path, model: PreTrainedModel) -> None:
    """Store the rows as float8 with one bfloat16 scale a layer; give `model` what they stand for.

    The scale is no power of two: a product is rounded once.
    """
    tensors = load_file(folder / WEIGHTS)
    for place, layer in enumerate(model.model.layers):
        if layer.ple is None:
            continue
        scale = torch.tensor([0.0123 * (1 + place)], dtype=torch.bfloat16)
        start = f"model.layers.{place}.ple.ple_embedding.ngram_embedding."
        numbers = []
        for index in range(4):
            name = f"{start}shard_{index}.weight"
            tensors[name] = (tensors[name].float() / scale.float()).to(torch.float8_e4m3fn)
            numbers.append(tensors[name].float() * scale.float())
        tensors[f"{start}weight_scale"] = scale
        layer.ple.ple_embedding.ngram_embedding.weight.data = torch.cat(numbers)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def longcat_flash() -> PreTrainedModel:
    """LongCat-Flash as transformers has it, without n-grams: 2 layers, hidden size 96."""
    torch.manual_seed(0)
    config = LongcatFlashConfig(
        vocab_size=50, hidden_size=96, num_layers=2, num_attention_heads=2, ffn_hidden_size=32,
        q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        head_dim=8, moe_topk=2, n_routed_experts=4, zero_expert_num=1, expert_ffn_hidden_size=16,
        pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return LongcatFlashForCausalLM(config).eval()


class _Block(nn.Module):
    """A layer that mixes each position with the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        earlier = F.pad(hidden, (0, 0, 1, 0))[:, :-1]
        return hidden + self.mix(torch.cat((hidden, earlier), dim=-1)).tanh()


class StreamDecoder(nn.Module):
    """A decoder whose layers carry copies of the hidden state, [B, T, streams x d]."""

    def __init__(
        self, vocabulary: int, *, streams: int = STREAMS, hidden: int = HIDDEN, layers: int = 5
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.config = SimpleNamespace(
            num_hidden_layers=layers, hidden_size=hidden, hc_mult=streams, model_type="small"
        )
        self.embed_tokens = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(_Block(streams * hidden) for _ in range(layers))
        self.head = nn.Linear(streams * hidden, vocabulary)
        self.streams = streams

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(input_ids).repeat(1, 1, self.streams)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The weights of a V4.1 layer as numbers: `wkv` [5 x d, E], `q` and `k` [streams, d]."""

    wkv: Array
    q: Array
    k: Array


@dataclass(frozen=True, kw_only=True)
class OwnTable:
    """A checkpoint, its layout, and by layer its rows as numbers and its dense weights."""

    path: Path
    layout: HashLayout
    values: Mapping[int, Array]
    dense: Mapping[int, Dense]


def deepseek_rows(random: np.random.Generator, rows: int, dim: int) -> tuple[Array, Array, Array]:
    """Random rows uint8[rows, dim], their scales uint8[rows, dim / 32], and what both stand for."""
    items = random.integers(0, 256, (rows, dim), dtype=np.uint8)
    items[items & 127 > 96] = 17  # no NaN, nothing large
    scales = random.integers(124, 128, (rows, dim // 32), dtype=np.uint8)
    values = np.empty((rows, dim), dtype=np.float32)
    DTYPES.load("fp8_e8m0").decode(items, scales, values)
    return items, scales, values


def deepseek(
    folder: Path,
    vocab: CompressedVocab,
    *,
    dim: int = 64,
    changes: Mapping[str, Any] | None = None,
    flat: bool = False,
) -> OwnTable:
    """A V4.1 folder for `StreamDecoder`: layers 1 and 3, with random gates and projections."""
    layout = hash_layout("deepseek-v4.1", vocab, rows_per_head=97, layers=(1, 3), pad_id=2)
    config: dict[str, Any] = {
        "engram_layer_ids": [1, 3],
        "engram_num_embeddings": [entry.rows for entry in layout.layers],
        "engram_max_ngram_size": 4,
        "engram_vocab_size": 97,
        "engram_n_heads": 8,
        "engram_head_dim": dim,
        ("engram_pad_id" if flat else "engram_pad_token_id"): 2,
        "engram_compressed_vocab_size": vocab.size,
        "vocab_size": vocab.vocab_size,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 5,
        "rms_norm_eps": 1e-6,
        "hc_mult": STREAMS,
        "quantization_config": {"quant_method": "fp8"},
    } | dict(changes or {})
    writer, random = Writer(folder=folder), np.random.default_rng(0)
    values, dense, out, width = {}, {}, HIDDEN * (STREAMS + 1), 24 * dim
    for place, entry in enumerate(layout.layers):
        file, start = f"model-0000{place + 1}-of-00002.safetensors", f"layers.{entry.layer}.engram."
        rows, scales, values[entry.layer] = deepseek_rows(random, entry.rows, dim)
        writer.add(file, f"{start}embed.weight", "float8_e4m3fn", rows)
        writer.add(file, f"{start}embed.scale", "float8_e8m0fnu", scales)
        items = deepseek_rows(random, out, width)[0]
        blocks = random.integers(118, 122, (out // 32, width // 32), dtype=np.uint8)
        writer.add(file, f"{start}wkv.weight", "float8_e4m3fn", items)
        writer.add(file, f"{start}wkv.scale", "float8_e8m0fnu", blocks)
        wide = np.float32(2) ** (blocks.astype(np.float32) - 127)
        wkv = DTYPES.load("fp8_e8m0").items.values[items] * wide.repeat(32, 0).repeat(32, 1)
        norms = [(1 + random.integers(-32, 32, (STREAMS, HIDDEN)) / 64) for _ in range(2)]
        for name, norm in zip(("q_weight", "k_weight"), norms, strict=True):
            writer.add(file, start + name, "bfloat16", bfloat16(norm))
        dense[entry.layer] = Dense(wkv=wkv, q=norms[0], k=norms[1])
    whole = {"model_type": "deepseek_v41", "image_token_id": IMAGE}
    writer.write({**whole, **config} if flat else {**whole, "text_config": config})
    return OwnTable(path=folder, layout=layout, values=values, dense=dense)


def deepseek_addition(dense: Dense, vectors: Tensor, hidden: Tensor, eps: float = 1e-6) -> Tensor:
    """What V4.1's layer adds to hidden states [B, T, streams x d], from vectors [B, T, E]."""
    streams = hidden.unflatten(-1, (STREAMS, HIDDEN))
    projected = vectors @ torch.from_numpy(dense.wkv).float().T
    keys, value = projected.split([STREAMS * HIDDEN, HIDDEN], dim=-1)

    def norm(x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()

    query = norm(streams) * torch.from_numpy(dense.q).float()
    key = norm(keys.unflatten(-1, (STREAMS, HIDDEN))) * torch.from_numpy(dense.k).float()
    dot = (query * key).sum(-1, keepdim=True) / HIDDEN**0.5
    gate = (dot.abs().clamp_min(1e-6).sqrt() * dot.sign()).sigmoid()
    return (gate * value.unsqueeze(-2)).flatten(-2)


def stored_tensors(folder: Path) -> dict[str, Array]:
    """The bytes of a checkpoint's tensors as they are stored."""
    found = open_folder(folder, {}, lambda name: True)
    return {name: tensor.values() for name, tensor in found.tensors.items()}


def deepseek_gguf(path: Path, own: OwnTable, dialect: str) -> Path:
    """V4.1's table and gates as GGUF: rows of 264 bytes, or scales in a tensor of their own."""
    files = stored_tensors(own.path)
    tensors: dict[str, Any] = {}
    for layer in own.layout.layer_ids:
        start = f"layers.{layer}.engram."
        rows, scales = files[f"{start}embed.weight"], files[f"{start}embed.scale"]
        if dialect == "llama.cpp":
            packed = np.concatenate([rows, scales], axis=1)
            tensors[f"blk.{layer}.engram_embd.weight"] = "int8", packed
        else:
            tensors[f"blk.{layer}.engram_embd"] = "int8", rows
            tensors[f"blk.{layer}.engram_embd_scale"] = "int8", scales
        dense = own.dense[layer]
        tensors[f"blk.{layer}.engram_wkv.weight"] = "float32", dense.wkv
        for name, values in (("q", dense.q), ("k", dense.k)):
            tensors[f"blk.{layer}.engram_{name}.weight"] = "float32", values.astype(np.float32)
    layout = own.layout
    lookup = layout.lookup
    assert lookup is not None
    flat = [
        np.array([value for entry in layout.layers for value in getattr(entry, name)], dtype="<u8")
        for name in ("multipliers", "moduli", "offsets")
    ]
    if dialect == "llama.cpp":
        names = [f"deepseek41.engram.{n}" for n in ("multipliers", "primes", "offsets")]
        keys = {"deepseek41.engram.layer_ids": np.array([1, 3], dtype="<i4"),
                "deepseek41.engram.head_count": 8, "deepseek41.engram.key_length": 256,
                "deepseek41.engram.max_ngram_size": 4,
                "deepseek41.engram.pad_id": layout.filler_id,
                "deepseek41.engram.token_map": lookup.astype("<i4")}  # fmt: skip
    else:
        names = ["ENGRAM_MULTIPLIERS", "ENGRAM_HEAD_BUCKET_SIZES", "ENGRAM_HEAD_OFFSETS"]
        heights = np.array([entry.rows for entry in layout.layers], dtype="<u4")
        keys = {"ENGRAM_LAYERS": np.array([1, 3], dtype="<i4"), "ENGRAM_NGRAM_SIZE": 4,
                "ENGRAM_HEAD_COUNT": 8, "ENGRAM_HEAD_DIM": 256,
                "ENGRAM_COMPRESSED_VOCAB_SIZE": layout.compressed_size,
                "ENGRAM_PAD_TOKEN_ID": 2, "ENGRAM_EMBEDDING_COUNTS": heights,
                "ENGRAM_TOKEN_MAP": lookup.astype("<i4")}  # fmt: skip
    keys |= dict(zip(names, flat, strict=True))
    return gguf(path, {"general.architecture": "deepseek41", "deepseek41.block_count": 5} | keys,
                tensors)  # fmt: skip


def logits(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    """What a model says of ids, without gradients."""
    with torch.no_grad():
        out = model(ids, **options)
    return out if isinstance(out, Tensor) else out.logits

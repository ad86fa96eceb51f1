"""Tiny models with random weights, and bundles for them."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values, module_spec
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.safetensors import Array
from engram_cli.runtime.memory import Memory
from engram_cli.vocab.compress import CompressedVocab

HIDDEN = 32
LAYERS = 4
DIM = 4


def llama(vocab_size: int, *, layers: int = LAYERS, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=2,
        initializer_range=0.1,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocab_size: int, **options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=2,
        initializer_range=0.1,
        **options,
    )
    return GPT2LMHeadModel(config).eval()


# "past_key_values" before transformers 5.24 or so
CACHE = next(
    n for n in ("cache", "past_key_values") if n in signature(LlamaForCausalLM.forward).parameters
)


FAMILIES = {"llama": llama, "gpt2": gpt2}


MODULES = ("engram-v1", "deepseek-v4.1", "qwen-ple")
ALL_MODULES = (*MODULES, "engram-peft")  # the last is only another program's


def make_layout(
    vocab: CompressedVocab, layers: tuple[int, ...] = (1, 2), scheme: str = "engram-v1"
) -> HashLayout:
    """Small tables for decoder layers counted from 0."""
    if scheme == "qwen-ple":
        return hash_layout(
            scheme,
            vocab_size=vocab.vocab_size,
            eos_id=1,
            heads=2,
            rows_per_head=97,
            layers=tuple(layer + 1 for layer in layers),
        )
    return hash_layout(
        scheme, vocab, orders=(2, 3), heads=2, rows_per_head=97, layers=layers, pad_id=2
    )


def make_spec(layout: HashLayout, dtype: str = "float32", **options: Any) -> BundleSpec:
    values: dict[str, Any] = {
        "layout": layout,
        "layers": layout.layer_ids,
        "dim": DIM,
        "dtype": dtype,
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "model_type": "llama",
    }
    return BundleSpec(**values | options)


def spec_of(vocab: CompressedVocab, kind: str, *, streams: int = 1, **options: Any) -> BundleSpec:
    """The spec of a module on the layout of its own scheme."""
    module = module_spec(kind, streams=streams, norm_eps=1e-6)
    layout = make_layout(vocab, options.pop("decoder_layers", (1, 2)), kind)
    return make_spec(layout, module=module, **options)


def make_bundle(path: Path, spec: BundleSpec, *, zero: bool = False, **options: Any) -> Path:
    """A bundle of random rows, or of zero rows."""

    def rows(layer: int) -> list[tuple[int, Array]]:
        values = np.random.default_rng(layer).standard_normal((spec.rows(layer), spec.dim))
        single = (values * (not zero)).astype(np.float32)
        if spec.dtype == "bfloat16":
            return [(0, (single.view(np.uint32) >> 16).astype(np.uint16))]
        return [(0, single.astype(spec.dtype))]

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    write_bundle(path, spec, rows, dense, tool_version="0", **options)
    return path


def wake(memory: Memory) -> None:
    """Random weights everywhere, so that rows and the convolution matter."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in memory.named_parameters():
        if "multi_head_embedding" in name:
            continue
        is_norm = "norm" in name or name.endswith(("q_weight", "k_weight"))
        noise = torch.randn(parameter.shape, generator=generator) * (0.2 if is_norm else 0.5)
        is_centred = "norm_" in name and "gating" not in name
        with torch.no_grad():
            parameter.copy_(noise + (1 if is_norm and not is_centred else 0))


def text(vocab_size: int, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids int64[batch, length] of ids from 3 on, which are no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (batch, length), generator=generator)


def logits(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def with_cache(cache: Any) -> dict[str, Any]:
    """A cache as an argument, by the name that the installed transformers gives it."""
    return {CACHE: cache}


def cache_in(output: Any) -> Any:
    """The cache that a model returned."""
    return output[CACHE]


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.clone() for name, value in module.state_dict().items()}

"""The model families of the test matrix, as small as their configs allow, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

WIDTH = 16
LAYERS = 2
PAD = 2

_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
_LATENT = {
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family by its name in the documentation: transformers' model type and config options."""

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, vocab_size: int) -> PreTrainedModel:
        """The model, in float32, without dropout."""
        torch.manual_seed(0)
        if self.model_type == "llava":
            return _llava(vocab_size)
        config = AutoConfig.for_model(self.model_type, **common(vocab_size) | self.options)
        return AutoModelForCausalLM.from_config(config).eval()


FAMILIES = {
    "Llama": Family(model_type="llama", options=_GROUPED),
    "Qwen3": Family(model_type="qwen3", options=_GROUPED),
    "Mistral": Family(model_type="mistral", options=_GROUPED | {"sliding_window": 48}),
    "Gemma 3": Family(model_type="gemma3_text", options=_GROUPED | {"sliding_window": 48}),
    "Phi-3": Family(model_type="phi3", options={"num_key_value_heads": 1}),
    "GPT-2": Family(
        model_type="gpt2", options={"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    ),
    "GPT-NeoX": Family(model_type="gpt_neox"),
    "OPT": Family(
        model_type="opt", options={"ffn_dim": 24, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
    ),
    "OLMo 2": Family(model_type="olmo2", options={"num_key_value_heads": 1}),
    "gpt-oss": Family(
        model_type="gpt_oss",
        options=_GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 48},
    ),
    "DeepSeek-V3": Family(model_type="deepseek_v3", options=_LATENT),
    "Qwen3-MoE": Family(model_type="qwen3_moe", options=_GROUPED | _EXPERTS),
    "LLaVA": Family(model_type="llava"),
}

_MAMBA_HEADS = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
}

# Families that keep a state in addition to keys and values, or instead of them.
STATE_FAMILIES = {
    "Mamba": Family(
        model_type="mamba", options={"state_size": 4, "conv_kernel": 4, "time_step_rank": 4}
    ),
    "Mamba 2": Family(
        model_type="mamba2",
        options={"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "Falcon Mamba": Family(
        model_type="falcon_mamba", options={"state_size": 4, "time_step_rank": 4}
    ),
    "RWKV": Family(
        model_type="rwkv", options={"attention_hidden_size": WIDTH, "context_length": 128}
    ),
    "Jamba": Family(
        model_type="jamba",
        options={
            "num_key_value_heads": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Bamba": Family(
        model_type="bamba",
        options={"num_key_value_heads": 1, "attn_layer_indices": [1], **_MAMBA_HEADS},
    ),
    "Falcon-H1": Family(
        model_type="falcon_h1", options=_GROUPED | _MAMBA_HEADS | {"mamba_d_ssm": 32}
    ),
    "Granite 4 hybrid": Family(
        model_type="granitemoehybrid",
        options={
            "num_key_value_heads": 1,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 8,
            **_MAMBA_HEADS,
        },
    ),
    "LFM2": Family(
        model_type="lfm2",
        options={"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "Qwen3-Next": Family(
        model_type="qwen3_next",
        options={
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 8,
            **_GROUPED,
            **_EXPERTS,
        },
    ),
    "MiniMax": Family(
        model_type="minimax",
        options={
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "block_size": 8,
            **_GROUPED,
        },
    ),
}

# Families with keys and values only, beyond those of the matrix.
MORE_FAMILIES = {
    "BioGPT": Family(model_type="biogpt"),
    "BLOOM": Family(model_type="bloom", options={"n_layer": LAYERS, "n_head": 2}),
    "Cohere 2": Family(
        model_type="cohere2",
        options={
            "num_key_value_heads": 1,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 48,
        },
    ),
    "CTRL": Family(
        model_type="ctrl", options={"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "dff": 24}
    ),
    "Falcon": Family(model_type="falcon", options={"num_kv_heads": 1}),
    "Gemma 2": Family(model_type="gemma2", options=_GROUPED),
    "GPT-BigCode": Family(
        model_type="gpt_bigcode", options={"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2}
    ),
    "GPT-J": Family(
        model_type="gptj",
        options={"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "rotary_dim": 4},
    ),
    "GPT-Neo": Family(
        model_type="gpt_neo",
        options={
            "num_layers": LAYERS,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    "Llama 4": Family(
        model_type="llama4_text",
        options=_GROUPED
        | {"num_local_experts": 2, "intermediate_size_mlp": 24, "no_rope_layers": [1, 0]},
    ),
    "MPT": Family(model_type="mpt", options={"d_model": WIDTH, "n_heads": 2, "n_layers": LAYERS}),
    "StableLM": Family(model_type="stablelm", options={"num_key_value_heads": 1}),
    "XGLM": Family(
        model_type="xglm",
        options={"d_model": WIDTH, "num_layers": LAYERS, "attention_heads": 2, "ffn_dim": 24},
    ),
}


def common(vocab_size: int) -> dict[str, Any]:
    """The options that all families understand."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "initializer_range": 0.3,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _llava(vocab_size: int) -> PreTrainedModel:
    text = AutoConfig.for_model("llama", **common(vocab_size) | _GROUPED)
    vision = AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=4,
        patch_size=2,
    )
    config = AutoConfig.for_model(
        "llava",
        text_config=text,
        vision_config=vision,
        image_token_index=vocab_size - 1,
        vision_feature_layer=-1,
        pad_token_id=PAD,
        bos_token_id=0,
        eos_token_id=None,
    )
    return LlavaForConditionalGeneration(config).eval()

"""The demo's model: Llama in plain torch, so that the demo needs no model library.

Reads the checkpoint of `demo_checkpoint`; equal to transformers' LlamaForCausalLM on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """What the decoder reads of a config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rms_norm_eps: float
    rope_theta: float


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """[B, T, d] in and out; `angles` [T, d / heads / 2]."""
        b, t, d = x.shape
        split = (b, t, self.heads, d // self.heads)
        q, k, v = (
            project(x).view(split).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(
            rotate(q, angles), rotate(k, angles), v, is_causal=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(b, t, d))
        return out


class Mlp(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, wide = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, wide, bias=False)
        self.up_proj = nn.Linear(d, wide, bias=False)
        self.down_proj = nn.Linear(wide, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] in and out."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """A decoder layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.RMSNorm(d, eps)
        self.post_attention_layernorm = nn.RMSNorm(d, eps)

    def forward(self, hidden_states: Tensor, angles: Tensor) -> Tensor:
        """[B, T, d] in and out."""
        x = hidden_states + self.self_attn(self.input_layernorm(hidden_states), angles)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Base(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, T] in, hidden states [B, T, d] out."""
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        frequencies = self.config.rope_theta ** (-torch.arange(half) / half)
        angles = torch.arange(input_ids.shape[1])[:, None] * frequencies
        x: Tensor = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, angles)
        out: Tensor = self.norm(x)
        return out


class Decoder(nn.Module):
    """The model with its tied output head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Base(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, T] in, logits [B, T, vocab] out."""
        hidden = self.model(input_ids=input_ids)
        return functional.linear(hidden, self.model.embed_tokens.weight)


def load_decoder(folder: Path) -> Decoder:
    """The decoder of a checkpoint folder with its weights."""
    fields = json.loads((folder / "config.json").read_text())
    config = DecoderConfig(**{name: fields[name] for name in DecoderConfig.__slots__})
    decoder = Decoder(config)
    decoder.load_state_dict(load_file(folder / "model.safetensors"))
    return decoder


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding of x [B, H, T, D] by angles [T, D/2], halves paired as in Llama."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

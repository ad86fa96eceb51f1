"""The demo's checkpoint: a small Llama with random weights, written with NumPy alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from engram_cli.errors import EngramError
from engram_cli.files import read_json
from engram_cli.formats.bundle import BUNDLE
from engram_cli.outputs import Kind, Listing

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write_checkpoint(folder: Path, tokenizer: Path, vocab_size: int, seed: int = 0) -> int:
    """Write config.json, tokenizer.json and seeded random weights; the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    generator = np.random.default_rng(seed)
    weights = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else generator.normal(0.0, 0.02, shape).astype(np.float32)
        for name, shape in _shapes(config).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(weight.size for weight in weights.values())


def _listing(path: Path) -> Listing | None:
    """The demo's checkpoint, by its config.json, and the bundle that the demo attached to it."""
    try:
        config = read_json(path / "config.json", "a checkpoint")
    except EngramError:
        return None
    if config != CONFIG | {"vocab_size": config.get("vocab_size")}:
        return None
    own = frozenset(("config.json", "tokenizer.json", "model.safetensors"))
    bundle = BUNDLE.listing(path / "engram")
    attached = () if bundle is None else (f"engram/{name}" for name in bundle.files)
    return Listing(own, frozenset(attached))


CHECKPOINT = Kind(name="checkpoint of the demo", listing=_listing)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, wide = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], d),
        "model.norm.weight": (d,),
    }
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (wide, d) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (d, wide)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}.{norm}.weight"] = (d,)
    return shapes

"""What an attached memory costs: forward, training step and decode beside the bare model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runner import Case
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engram_cli import hash_layout
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.dense import first_values
from engram_cli.formats.module_spec import KINDS, module_spec
from engram_cli.runtime import attach

WIDTH, LAYERS, VOCAB = 512, 8, 8192
BATCH, LENGTH, NEW = 4, 256, 32
ROWS = 20_000  # a head; 16 heads of 32 numbers a row
PLACES = (2, 5)  # the second layer and the middle, counted from 1 as this scheme does


def cases() -> Iterator[Case]:
    """Fresh memories in two of eight layers: outputs equal the bare model's to the bit."""
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (BATCH, LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        models = {"bare": _model()}
        for kind in KINDS:
            models[kind] = _attached(Path(folder) / kind, kind)
        models["engram-v1, sparse gradients"] = _attached(
            Path(folder) / "engram-v1", "engram-v1", sparse_gradients=True
        )
        about = (
            f"Llama of {LAYERS} layers of width {WIDTH}, float32, memories in two layers: "
            f"16 heads, {16 * ROWS:,} rows of 32 a layer, embedded width {WIDTH}."
        )
        runs: list[tuple[str, int, Callable[[Any], Callable[[], Tensor]]]] = [
            ("forward", BATCH * LENGTH, lambda model: lambda: _forward(model, ids)),
            ("training step", BATCH * LENGTH, lambda model: lambda: _step(model, ids)),
            ("decode, one sequence", NEW, lambda model: lambda: _decode(model, ids[:1, :16])),
        ]
        for name, amount, make in runs:
            yield Case(
                name=name,
                amount=amount,
                unit="tokens",
                notes=about,
                contestants={
                    which: make(model)
                    for which, model in models.items()
                    if name == "training step" or "sparse" not in which
                },
                same=torch.equal,
            )


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        eos_token_id=None,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def _attached(path: Path, kind: str, **options: Any) -> LlamaForCausalLM:
    layout = hash_layout("qwen-ple", vocab_size=VOCAB, eos_id=1, rows_per_head=ROWS, layers=PLACES)
    spec = BundleSpec(
        layout=layout,
        layers=PLACES,
        dim=32,
        dtype="float32",
        hidden_size=WIDTH,
        num_layers=LAYERS,
        model_type="llama",
        module=module_spec(kind),
    )

    def rows(layer: int) -> Iterator[tuple[int, Any]]:
        generator = np.random.default_rng(layer)
        yield 0, generator.standard_normal((spec.rows(layer), spec.dim), dtype=np.float32)

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    if not path.exists():
        write_bundle(path, spec, rows, dense, tool_version="0")
    model = _model()
    attach(model, path, **options)
    return model


def _forward(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids, use_cache=False).logits
    return logits


def _step(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Forward and backward; the gradients are dropped."""
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    model.zero_grad()
    return loss.detach()


def _decode(model: LlamaForCausalLM, prompt: Tensor) -> Tensor:
    return model.generate(prompt, max_new_tokens=NEW, do_sample=False)

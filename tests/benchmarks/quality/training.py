"""A small decoder, with or without a memory: its training on token ids, and its held-out loss."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from engram_cli.runtime import attach, memories, trace
from engram_cli.runtime.memory import Memory

ROWS = "embedding.weight"  # how the names of the rows end


@dataclass(frozen=True, kw_only=True)
class Size:
    """A decoder and how it is trained; `batch` sequences of `length` tokens a step."""

    vocabulary: int = 16_384
    hidden: int = 512
    inner: int = 1_408
    layers: int = 8
    heads: int = 8
    length: int = 512
    batch: int = 128
    rate: float = 1e-3
    rows_rate: float = 5.0  # times the rate, as the paper has it
    warm_up: int = 40

    def config(self, wider: int = 0) -> LlamaConfig:
        """The decoder's configuration, its inner layers `wider` by so much."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner + wider,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.length,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training gave: losses in nats a token, by step, and held out at the end."""

    held_out: float
    losses: list[float]
    seconds: float
    gates: dict[str, list[float]]


def new_model(size: Size, seed: int, device: torch.device, wider: int = 0) -> LlamaForCausalLM:
    """A decoder with random weights; on a GPU its layers are compiled, hooks of a memory apart."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(size.config(wider)).to(device)
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
    return model


def remember(model: nn.Module, bundle: Path, *, frozen: bool) -> Memory:
    """Attach the bundle, its rows trained densely or frozen."""
    return attach(model, bundle, rows_trainable=not frozen)


def train(
    model: LlamaForCausalLM,
    size: Size,
    train_ids: Tensor,
    held_out: Tensor,
    *,
    steps: int,
    first: int = 0,
    seed: int,
) -> Trained:
    """Train for `steps` batches from batch `first` on of the order that `seed` draws."""
    device = train_ids.device
    optimiser = _optimiser(model, size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _rate(step, steps, size.warm_up)
    )
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    losses = []
    begin = time.perf_counter()
    model.train()
    for ids in _batches(train_ids, size, seed, first, steps):
        loss = _loss(model, ids)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    seconds = time.perf_counter() - begin if device.type == "cpu" else _synced(begin)
    return Trained(
        held_out=evaluate(model, size, held_out),
        losses=[round(x, 4) for x in torch.stack(losses).tolist()],
        seconds=round(seconds, 2),
        gates=gate_statistics(model, size, held_out),
    )


def evaluate(model: LlamaForCausalLM, size: Size, ids: Tensor) -> float:
    """The mean loss on all whole sequences of `ids`."""
    model.eval()
    sequences = ids[: len(ids) // size.length * size.length].view(-1, size.length)
    total = 0.0
    with torch.no_grad():
        for begin in range(0, len(sequences), size.batch):
            part = sequences[begin : begin + size.batch].long()
            total += _loss(model, part).item() * len(part)
    return round(total / len(sequences), 5)


def gate_statistics(model: LlamaForCausalLM, size: Size, ids: Tensor) -> dict[str, list[float]]:
    """By layer: the mean, and the 10th, 50th and 90th percentile of the gates on held-out text."""
    if not memories(model):
        return {}
    found: dict[int, list[Tensor]] = {}
    for sequence in ids[: 16 * size.length].view(16, size.length).long():
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            for layer, gates in trace(model, sequence).gates.items():
                found.setdefault(layer, []).append(gates.flatten())
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    out = {}
    for layer, parts in found.items():
        values = torch.cat(parts)
        figures = [values.mean().item(), *values.quantile(quantiles).tolist()]
        out[str(layer)] = [round(figure, 4) for figure in figures]
    return out


def load_ids(path: Path, device: torch.device) -> Tensor:
    """int32 ids of a packed token file."""
    import lzma

    ids = np.frombuffer(lzma.decompress(path.read_bytes()), dtype=np.uint16)
    return torch.from_numpy(ids.astype(np.int32)).to(device)


def _batches(ids: Tensor, size: Size, seed: int, first: int, steps: int):  # type: ignore[no-untyped-def]
    """Batches int64[batch, length]: whole sequences in an order that `seed` draws."""
    sequences = ids[: len(ids) // size.length * size.length].view(-1, size.length)
    generator = np.random.default_rng(seed)
    order = np.concatenate(
        [
            generator.permutation(len(sequences))
            for _ in range(-(-(first + steps) * size.batch // len(sequences)))
        ]
    )
    for step in range(first, first + steps):
        chosen = torch.from_numpy(order[step * size.batch : (step + 1) * size.batch])
        yield sequences[chosen.to(ids.device)].long()


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(ids[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _optimiser(model: LlamaForCausalLM, size: Size) -> torch.optim.AdamW:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    rows = [p for n, p in named if n.endswith(ROWS)]
    plain = [p for n, p in named if not n.endswith(ROWS) and p.ndim < 2]
    decayed = [p for n, p in named if not n.endswith(ROWS) and p.ndim >= 2]
    groups = [
        {"params": decayed, "weight_decay": 0.1, "lr": size.rate},
        {"params": plain, "weight_decay": 0.0, "lr": size.rate},
    ]
    if rows:
        groups.append({"params": rows, "weight_decay": 0.0, "lr": size.rate * size.rows_rate})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def _rate(step: int, steps: int, warm_up: int) -> float:
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(steps - warm_up, 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _synced(begin: float) -> float:
    torch.cuda.synchronize()
    return time.perf_counter() - begin

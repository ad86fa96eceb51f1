"""One training of a pretrained decoder: its adapters, its optimisers, its held-out losses."""

from __future__ import annotations

import importlib
import math
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from engram_cli.runtime import RowwiseAdam, attach, clip_grad_norm
from engram_cli.runtime.training import row_parameters

LENGTH = 512
WARM_UP = 20
SETTLED = 20  # steps before the clock starts
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HELD = ("docs-held", "python-held", "third-held")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A training. Rates: `rate` of full fine-tuning or LoRA, `dense` and `rows` of the memory.

    `memory`: "" for none, "normal" or "next-token" for the rows' start, "peft" for engram-peft's.
    """

    name: str
    domain: str = "docs"
    seed: int = 0
    steps: int = 300
    batch: int = 32
    full: bool = False
    lora: int = 0
    memory: str = ""
    frozen: bool = False
    layers: tuple[int, ...] = ()
    rows_per_head: int = 200_000
    rate: float = 0.0
    dense: float = 0.0
    rows: float = 0.0


class World:
    """What the trainings of one model share: its weights, the token ids, the bundles."""

    def __init__(self, checkpoint: Path, data: Path, bundles: Path, device: torch.device) -> None:
        self.checkpoint, self.bundles, self.device = checkpoint, bundles, device
        first = AutoTokenizer.from_pretrained(checkpoint)("").input_ids  # Gemma's start token
        self.held = {name: sequences(data / f"{name}.npy", first, device) for name in HELD}
        self.train = {
            domain: sequences(data / f"{domain}-train.npy", first, device)
            for domain in ("docs", "python")
        }
        self.weights = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self.state = {name: value.clone() for name, value in self.weights.state_dict().items()}

    def run(self, arm: Arm) -> dict[str, Any]:
        """Train one arm; gives its losses, its time per step and its memory on the device."""
        torch.manual_seed(arm.seed)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        model = AutoModelForCausalLM.from_config(self.weights.config).to(self.device)
        model.load_state_dict(self.state)
        model.config.use_cache = False
        model, optimisers = self.adapted(model, arm)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        compile_layers(model)
        losses, seconds = self.trained(model, optimisers, arm)
        return {
            "held": self.losses(model, arm.batch),
            "train": losses[::10],
            "step_ms": round(1000 * seconds / max(arm.steps - SETTLED, 1), 2),
            "trainable": trainable,
            "peak_gb": self.peak(),
        }

    def adapted(self, model: nn.Module, arm: Arm) -> tuple[nn.Module, list[Any]]:
        """The model with the arm's adapters, all else frozen, and its optimisers."""
        if arm.memory == "peft":
            return peer(model, self.checkpoint, arm)
        model.requires_grad_(arm.full)
        memory = None
        if arm.memory:
            memory = attach(
                model,
                self.bundles / bundle_name(arm),
                rows_trainable=not arm.frozen,
                sparse_gradients=not arm.frozen,
            )
        optimisers: list[Any] = []
        if arm.lora:
            model = lora(model, arm.lora)
            adapter = [p for name, p in model.named_parameters() if "lora_" in name]
            optimisers.append(adamw(adapter, arm.rate))
        if arm.full:
            optimisers.append(adamw(list(model.parameters()), arm.rate))
        if memory is not None:
            rows = {id(p) for p in row_parameters(memory_owner(model))}
            memory.requires_grad_(True)
            dense = [p for p in memory.parameters() if id(p) not in rows]
            optimisers.append(adamw(dense, arm.dense))
            if arm.frozen:
                for weight in memory.parameters():
                    weight.requires_grad_(id(weight) not in rows)
            else:
                trained = [p for p in memory.parameters() if id(p) in rows]
                optimisers.append(RowwiseAdam(trained, lr=arm.rows, betas=(0.9, 0.95)))
        return model, optimisers

    def trained(
        self, model: nn.Module, optimisers: list[Any], arm: Arm
    ) -> tuple[list[float], float]:
        """The loss of each step, and the seconds of those after the first ones."""
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, arm.steps))
            for optimiser in optimisers
        ]
        losses: list[Tensor] = []
        begin = time.perf_counter()
        model.train()
        sparse = not arm.frozen and arm.memory not in ("", "peft")
        for step, ids in enumerate(batches(self.train[arm.domain], arm)):
            if step == SETTLED:
                self.wait()
                begin = time.perf_counter()
            loss = loss_of(model, ids)
            torch.autograd.backward(loss)
            if sparse:
                clip_grad_norm(model, 1.0)
            else:
                parts = [p for p in model.parameters() if p.grad is not None]
                nn.utils.clip_grad_norm_([p for p in parts if not p.grad.is_sparse], 1.0)
            for optimiser, schedule in zip(optimisers, schedules, strict=True):
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        self.wait()
        seconds = time.perf_counter() - begin
        return [round(x, 4) for x in torch.stack(losses).tolist()] if losses else [], seconds

    def losses(self, model: nn.Module, batch: int) -> dict[str, float]:
        """Mean held-out loss by domain, nats a token."""
        model.eval()
        found = {}
        with torch.no_grad():
            for name, held in self.held.items():
                ids = held[: len(held) // batch * batch]  # one shape, one compilation
                total = torch.zeros((), device=self.device, dtype=torch.float64)
                for begin in range(0, len(ids), batch):
                    part = ids[begin : begin + batch].long()
                    total += loss_of(model, part).double() * len(part)
                found[name.removesuffix("-held")] = round(total.item() / len(ids), 5)
        return found

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self) -> float:
        if self.device.type != "cuda":
            return 0.0
        return round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)


def bundle_name(arm: Arm) -> str:
    """The folder of the bundle that an arm attaches."""
    layers = "-".join(map(str, arm.layers))
    filled = f"-{arm.domain}" if arm.memory == "next-token" else ""
    return f"{arm.memory}{filled}-{layers}-{arm.rows_per_head}"


def sequences(path: Path, first: list[int], device: torch.device) -> Tensor:
    """int32 [n, LENGTH] token ids of a file, cut into sequences that begin with `first`."""
    ids = np.load(path).astype(np.int32)
    own = LENGTH - len(first)
    ids = ids[: len(ids) // own * own].reshape(-1, own)
    begin = np.tile(np.array(first, np.int32), (len(ids), 1))
    return torch.from_numpy(np.concatenate([begin, ids], axis=1)).to(device)


def batches(ids: Tensor, arm: Arm):  # type: ignore[no-untyped-def]
    """int64 [batch, LENGTH]: sequences in an order that the seed draws, over and over."""
    generator = np.random.default_rng(arm.seed)
    needed, order = arm.steps * arm.batch, [np.zeros(0, np.int64)]
    while sum(map(len, order)) < needed:
        order.append(generator.permutation(len(ids)))
    chosen = np.concatenate(order)[:needed].reshape(arm.steps, arm.batch)
    for step in chosen:
        yield ids[torch.from_numpy(step).to(ids.device)].long()


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean next-token loss in nats, under bf16 autocast."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def rate_at(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(done, 1.0)))


def adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def lora(model: nn.Module, rank: int) -> nn.Module:
    """PEFT's LoRA on every linear layer of the decoder layers, scaled by 2."""
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LINEARS))
    return peft.get_peft_model(model, config)


def compile_layers(model: nn.Module) -> None:
    """Compile the decoder layers, on a GPU; hooks of a memory run outside of them."""
    if next(model.parameters()).is_cuda:
        torch._dynamo.config.recompile_limit = 64
        decoder = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
        for layer in decoder:
            layer.forward = torch.compile(layer.forward, dynamic=False)  # type: ignore[method-assign]


def memory_owner(model: nn.Module) -> nn.Module:
    """The model that carries the memory, inside PEFT's wrapper or not."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def peer(model: nn.Module, checkpoint: Path, arm: Arm) -> tuple[nn.Module, list[Any]]:
    """engram-peft's memory of the same size, with the optimiser that it makes itself."""
    if "trl" not in sys.modules and importlib.util.find_spec("trl") is None:
        # It imports trl for classes that are not used here.
        sys.modules["trl"] = types.ModuleType("trl")
        sys.modules["trl"].SFTConfig = sys.modules["trl"].SFTTrainer = object  # type: ignore[attr-defined]
    package = importlib.import_module("engram_peft")
    transformers = importlib.import_module("transformers")
    model.requires_grad_(False)
    config = package.EngramConfig(
        engram_vocab_size_per_ngram=[8 * arm.rows_per_head] * 2,
        ngram_sizes=[2, 3],
        n_head_per_ngram=8,
        embedding_dim=512,
        target_layers=list(arm.layers),
        hc_mult=1,
        hidden_size=model.config.hidden_size,
        tokenizer_name_or_path=str(checkpoint),
        pad_id=model.config.pad_token_id,
        use_sparse_embeddings=True,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    wrapped = package.get_engram_model(model, config, tokenizer)
    device = next(model.parameters()).device
    optimiser = package.get_optimizer(wrapped.to(device), base_learning_rate=arm.rate)
    return wrapped, [optimiser]

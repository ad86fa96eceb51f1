"""The demo's training: a bundle on a frozen model, ten steps of the memory alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from engram_cli.progress import Progress
from engram_cli.runtime.attach import attach
from engram_cli.vocab.tokenizer import load_tokenizer

BATCH = 2
ROWS = "embedding.weight"  # how the names of the rows end
LENGTH = 129  # 128 inputs and their next tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Steps of the memory alone: losses (nats a token) before each and after the last."""

    logits_equal: bool
    losses: tuple[float, ...]
    trained_parameters: int


def train(
    checkpoint: Path, bundle: Path, files: Sequence[Path], steps: int, progress: Progress
) -> Training:
    """Attach `bundle` to the model in `checkpoint`, compare its logits, train the memory."""
    torch.manual_seed(0)
    tokens = _tokens(checkpoint, files)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.requires_grad_(False)
    probe = tokens[:1, :-1]
    with torch.no_grad():
        bare = model(probe).logits
        memory = attach(model, bundle, sparse_gradients=True)
        equal = torch.equal(model(probe).logits, bare)
    rows = [weight for name, weight in memory.named_parameters() if name.endswith(ROWS)]
    dense = [weight for name, weight in memory.named_parameters() if not name.endswith(ROWS)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.SparseAdam(rows, lr=1e-2),
        torch.optim.AdamW(dense, lr=1e-2, weight_decay=0.0),
    ]
    losses = []
    progress.start("training the memory", steps, "steps")
    for _ in range(steps):
        loss = _loss(model, tokens)
        torch.autograd.backward(loss)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
        progress.advance(1)
    with torch.no_grad():
        losses.append(_loss(model, tokens).item())
    return Training(
        logits_equal=equal,
        losses=tuple(losses),
        trained_parameters=sum(parameter.numel() for parameter in rows + dense),
    )


def _tokens(checkpoint: Path, files: Sequence[Path]) -> Tensor:
    """Return int64 [BATCH, LENGTH] from sources spread over the library."""
    tokenizer = load_tokenizer(checkpoint)
    lines: list[list[int]] = []
    for path in files[:: max(len(files) // (8 * BATCH), 1)]:
        ids = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
        if len(ids) >= LENGTH:
            lines.append(ids[:LENGTH])
        if len(lines) == BATCH:
            break
    return torch.tensor(lines)


def _loss(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

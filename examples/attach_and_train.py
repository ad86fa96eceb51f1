"""A memory is attached to a model and trained alone on a text, in a plain loop, then saved.

    python examples/attach_and_train.py ckpt/ ckpt/engram text.txt trained/

`engram train` does the same with held-out text, evaluation and resuming.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engram_cli import attach
from engram_cli.runtime import clip_grad_norm, save_engram
from engram_cli.training.optimiser import make_optimiser


def main(checkpoint: Path, bundle: Path, text: Path, out: Path, steps: int, length: int) -> None:
    """Train the memory of `bundle` on sequences of `length` tokens, and write it to `out`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).to(device)
    model.requires_grad_(False)
    memory = attach(model, bundle, sparse_gradients=True)  # its rows and gates do learn

    ids = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    sequences = ids[: len(ids) // length * length].view(-1, length).to(device)
    optimiser = make_optimiser(model)  # rows learn at their own rate, with one state for each row
    model.train()
    for step in range(steps):
        batch = sequences[torch.randint(len(sequences), (8,))]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        clip_grad_norm(model, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.4f}")
    save_engram(model, out)
    print(f"{sum(weight.numel() for weight in memory.parameters()):,} parameters in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=256)
    main(**vars(parser.parse_args()))

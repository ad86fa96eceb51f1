"""A model generates with a table that lies partly on the host, within a budget.

    python examples/serve_with_a_cache.py ckpt/ ckpt/engram --placement hbm=20GB,host=64GB

The rows that a text hits most stay on the GPU. Which these are, the bundle's row hits say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engram_cli import attach

PROMPTS = ["Only Alexander the Great", "An apple fell from the tree", "The horse"]


def main(checkpoint: Path, bundle: Path, placement: str, tokens: int) -> None:
    """Generate for each prompt; while one is generated, the rows of the next are on their way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).to(device).eval()
    memory = attach(model, bundle, placement=placement)
    print(*memory.placement.lines(), sep="\n")

    requests = [tokenizer(prompt, return_tensors="pt").to(device) for prompt in PROMPTS]
    for request in requests:
        memory.prefetch(request.input_ids)
        with torch.inference_mode():
            out = model.generate(**request, max_new_tokens=tokens, do_sample=False)
        print(repr(tokenizer.decode(out[0], skip_special_tokens=True)))
    print(memory.counters)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--placement", default="host")
    parser.add_argument("--tokens", type=int, default=16)
    main(**vars(parser.parse_args()))

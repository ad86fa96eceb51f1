"""The files that the pages of the documentation start from: what readers have of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from formats.checkpoints import deepseek_gguf, deepseek_v41, qwen_ple
from small_tokenizers import PROSE, byte_level_tokenizer
from tiny_models import llama
from transformers import PreTrainedTokenizerFast

from engram_cli.vocab.compress import compress_vocab

# Tables of the pages' commands are small in tests.
CONFIG = "[layout]\nheads = 2\nrows-per-head = 997\n"


def small_inputs(folder: Path) -> None:
    """Write a tokenizer, a model and texts into a new folder."""
    folder.mkdir(parents=True)
    tokenizer = folder / "tokenizer.json"
    byte_level_tokenizer().save(str(tokenizer))
    (folder / "engram.toml").write_text(CONFIG)
    _write_model(folder / "ckpt", tokenizer)
    _write_texts(folder)


def _write_model(folder: Path, tokenizer: Path) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), pad_token="<pad>")
    fast.save_pretrained(folder)
    model = llama(len(fast))
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)


def _write_texts(folder: Path) -> None:
    """Write corpus.txt, corpus/, text/, held-out.jsonl, and the folders held-out and held-back."""
    random = np.random.default_rng(0)
    words = " ".join(PROSE).split()

    def document() -> str:
        return " ".join(random.choice(words, size=200))

    (folder / "corpus.txt").write_text("\n".join(document() for _ in range(20)), encoding="utf-8")
    for name in ("corpus", "text", "held-out", "held-back"):
        (folder / name).mkdir()
        for number in range(12):
            (folder / name / f"{number}.txt").write_text(document() + "\n", encoding="utf-8")
    lines = [json.dumps({"text": document()}) for _ in range(8)]
    (folder / "held-out.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_checkpoints(folder: Path = Path()) -> None:
    """Write small checkpoints of other programs next to tokenizer.json."""
    tokenizer = folder / "tokenizer.json"
    vocab = compress_vocab(tokenizer)
    deepseek_v41(folder / "DeepSeek-V4.1-Flash", vocab, tokenizer, changes={"num_hidden_layers": 5})
    qwen_ple(folder / "Qwen4-Exp")
    lack = ("multipliers", "primes", "offsets", "token_map", "pad_id")
    deepseek_gguf(folder / "model.gguf", vocab, "llama.cpp", leave_out=lack)

"""A tiny checkpoint with its tokenizer, texts of one domain, and a bundle for it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from small_tokenizers import PROSE
from tiny_models import llama, make_bundle, make_layout, make_spec
from transformers import PreTrainedTokenizerFast

from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab, tokenizer_file: Path
) -> Path:
    """A tiny Llama with random weights."""
    folder = tmp_path_factory.mktemp("ckpt")
    llama(small_vocab.vocab_size).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """JSON lines of documents that are sentences in random order: to train on, and held out."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    paths = []
    for name, numbers in (("train", range(60)), ("held-out", range(60, 72))):
        lines = [
            '{"text": "' + " ".join(draw.choices(PROSE[:2], k=draw.randint(1, 4))) + f' {number}"}}'
            for number in numbers
        ]
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    """A bundle with float32 rows for layers 1 and 2 of the tiny models."""
    path = tmp_path_factory.mktemp("bundle") / "engram"
    return make_bundle(path, make_spec(make_layout(small_vocab)))

"""Models of two families, bare and with a memory that matters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, make_bundle, make_layout, make_spec, wake
from transformers import PreTrainedModel

from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    """A bundle with float32 rows for layers 1 and 2 of the tiny models."""
    path = tmp_path_factory.mktemp("bundle") / "engram"
    return make_bundle(path, make_spec(make_layout(small_vocab)))


@pytest.fixture(params=sorted(FAMILIES))
def bare(request: pytest.FixtureRequest, small_vocab: CompressedVocab) -> PreTrainedModel:
    """A tiny Llama and a tiny GPT-2."""
    return FAMILIES[request.param](small_vocab.vocab_size)


@pytest.fixture
def awake(bare: PreTrainedModel, bundle: Path) -> PreTrainedModel:
    """The tiny model with a memory of random weights."""
    wake(attach(bare, bundle))
    return bare

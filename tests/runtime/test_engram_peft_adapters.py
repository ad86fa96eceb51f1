"""Adapters that engram-peft trained and saved, attached with our runtime: the same logits."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import llama, text
from torch import nn
from transformers import PreTrainedTokenizerFast

from engram_cli import attach
from engram_cli.errors import InputError


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package's module `model`. Its own __init__ needs trl, and Python 3.12 for one name."""
    found = importlib.util.find_spec("engram_peft")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("engram-peft is not installed")
    monkeypatch.setattr(typing, "override", lambda method: method, raising=False)
    bare = ModuleType("engram_peft")
    bare.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "engram_peft", bare)
    try:
        return importlib.import_module("engram_peft.model")
    except ImportError as error:
        pytest.skip(f"engram-peft needs {error.name}")


def adapter(
    package: ModuleType, model: nn.Module, tokenizer: Path, folder: Path, **changes: Any
) -> nn.Module:
    """A model with the package's own injection and random weights, saved to `folder`."""
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), pad_token="</s>")
    values: dict[str, Any] = {
        "engram_vocab_size_per_ngram": [97 * 4, 211 * 4],
        "ngram_sizes": [2, 3],
        "n_head_per_ngram": 4,
        "embedding_dim": 64,
        "target_layers": [1, 2],
        "hidden_size": 32,
        "pad_id": fast.pad_token_id,
        "use_sparse_embeddings": False,
    }
    config = package.EngramConfig(**values | changes)
    wrapped = package.get_engram_model(model, config, tokenizer=fast).eval()
    torch.manual_seed(3)
    for name, parameter in wrapped.engram_layers.named_parameters():
        is_norm = "norm" in name
        parameter.data.normal_(1 if is_norm else 0, 0.1 if is_norm else 0.4)
    wrapped.save_pretrained_engram(str(folder))
    return wrapped


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("placement", ["hbm", "disk"])
@pytest.mark.filterwarnings("ignore")  # the package's own
def test_the_same_logits(
    package: ModuleType, tmp_path: Path, tokenizer_file: Path, copies: int, placement: str
) -> None:
    ids = text(300, 2, 14)
    wrapped = adapter(package, llama(408), tokenizer_file, tmp_path / "a", hc_mult=copies)
    bare = llama(408)
    with torch.no_grad():
        expected, before = wrapped(input_ids=ids).logits, bare(ids).logits
        assert not torch.allclose(expected, before, atol=0.05)
        memory = attach(bare, tmp_path / "a", tokenizer=tokenizer_file, placement=placement)
        torch.testing.assert_close(bare(ids).logits, expected, atol=2e-5, rtol=2e-5)
    assert memory.spec.module.kind == "engram-peft"
    assert memory.spec.module.streams == copies


@pytest.mark.filterwarnings("ignore")
def test_another_dilation_is_refused(
    package: ModuleType, tmp_path: Path, tokenizer_file: Path
) -> None:
    adapter(package, llama(408), tokenizer_file, tmp_path / "a", conv_dilation=2)
    with pytest.raises(InputError, match="dilation 2"):
        attach(llama(408), tmp_path / "a", tokenizer=tokenizer_file)

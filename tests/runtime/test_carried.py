"""Checkpoints and memories: where a bundle is found, own layers, state dicts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama, logits, parameters, text, wake
from torch import nn
from transformers import LlamaForCausalLM

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.runtime import attach, detach, load, memories
from engram_cli.vocab.compress import CompressedVocab

IDS = text(200, 2, 10)


def test_a_checkpoints_folder_stands_for_the_bundle_in_it(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no bundle at"):
        attach(model, tmp_path)
    shutil.copytree(bundle, tmp_path / "engram")
    memory = attach(model, tmp_path)
    wake(memory)
    fresh = parameters(attach(llama(small_vocab.vocab_size), bundle))
    load(model, str(tmp_path))
    assert all(torch.equal(value, fresh[name]) for name, value in parameters(memory).items())


class Part(nn.Module):
    """A module with a name that counts."""


def with_config(model: LlamaForCausalLM) -> str:
    model.config.engram_layer_ids = [1, 3]
    return "engram_layer_ids 1, 3"


def with_text_config(model: LlamaForCausalLM) -> str:
    model.config.language_config = {"ple_layer_ids": [2]}
    return "ple_layer_ids 2"


def with_module(model: LlamaForCausalLM) -> str:
    model.model.layers[1].engram = Part()
    return "model.layers.1.engram"


@pytest.mark.parametrize("own", [with_config, with_text_config, with_module])
def test_a_model_with_engram_layers_of_its_own(
    own: Any, small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    attach(model, bundle)
    attach(model, bundle, name="other")  # attached ones are none of the model's own
    detach(model)
    named = own(model)
    with pytest.raises(RuntimeAttachError, match=rf"of its own \({named}\)") as caught:
        attach(model, bundle)
    assert "force=True" in caught.value.hint
    assert not memories(model)
    attach(model, bundle, force=True)
    assert memories(model)


def test_a_state_dict_is_loaded_where_a_memory_is_attached(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    again = llama(small_vocab.vocab_size)
    attach(again, bundle)
    again.load_state_dict(model.state_dict())  # no warning: it is whole
    assert torch.equal(logits(again, IDS), logits(model, IDS))

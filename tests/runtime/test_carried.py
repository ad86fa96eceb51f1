"""Checkpoints and memories: where a bundle is found, own layers, what is saved with a model."""

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
from engram_cli.runtime import attach, detach, load, memories, save_engram
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


def test_saved_with_the_model_it_is_not_loaded_again(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    expected = logits(model, IDS)
    with pytest.warns(UserWarning, match=r"the memory engram will not be loaded.*save_engram") as w:
        model.save_pretrained(tmp_path)
    assert [Path(found.filename).name for found in w] == [Path(__file__).name]
    save_engram(model, tmp_path / "engram")
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert not torch.equal(logits(again, IDS), expected)
    attach(again, tmp_path)
    assert torch.equal(logits(again, IDS), expected)


def test_a_state_dict_is_loaded_where_a_memory_is_attached(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    again = llama(small_vocab.vocab_size)
    attach(again, bundle)
    again.load_state_dict(model.state_dict())  # no warning: it is whole
    assert torch.equal(logits(again, IDS), logits(model, IDS))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_adapters_saved_without_and_with_the_memory(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")

    def adapted(**options: Any) -> Any:
        model = llama(small_vocab.vocab_size)
        wake(attach(model, bundle))
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], **options)
        return peft.get_peft_model(model, config).eval()

    with pytest.warns(UserWarning, match=r"the memory base_model\.model\.engram will not be"):
        adapted().save_pretrained(tmp_path / "without")
    model = adapted(modules_to_save=["engram"])
    with torch.no_grad():
        memories(model)["engram"].layers["1"].value_proj.weight.add_(1)
    model.save_pretrained(tmp_path / "with")  # no warning: PEFT loads it again
    fresh = llama(small_vocab.vocab_size)
    wake(attach(fresh, bundle))
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "with")
    assert torch.equal(logits(again, IDS), logits(model, IDS))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_a_trainers_checkpoint_warns_and_is_resumed(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    lines = [{"input_ids": IDS[0], "labels": IDS[0]}] * 4

    def trainer(steps: int) -> Any:
        model = llama(small_vocab.vocab_size)
        wake(attach(model, bundle))
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            save_steps=1,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        return transformers.Trainer(model, arguments, train_dataset=lines)

    first = trainer(1)
    with pytest.warns(UserWarning, match="the memory engram will not be loaded"):
        first.train()
    second = trainer(2)
    with pytest.warns(UserWarning, match="the memory engram will not be loaded"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    unbroken = trainer(2)
    with pytest.warns(UserWarning, match="the memory engram will not be loaded"):
        unbroken.train()
    for (name, mine), whole in zip(
        second.model.engram.named_parameters(), unbroken.model.engram.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, whole, msg=name)

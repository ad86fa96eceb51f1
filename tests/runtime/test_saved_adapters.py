"""Adapters and Trainer checkpoints: the memory under them is saved with them, and comes back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_bundles import quantised_bundle
from safetensors import safe_open
from tiny_models import llama, logits, parameters, text, wake
from torch import nn
from transformers import LlamaForCausalLM

import engram_cli.hf
from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach, memories
from engram_cli.vocab.compress import CompressedVocab

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [
    # peft asks transformers by a name that it has deprecated.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    # Tiny models have no name to look their embeddings up by.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

engram_cli.hf.disable()  # until a test enables it
IDS = text(200, 2, 10)
MEMORY_LORA = r".*engram.*(value_proj|key_projs\.0)|.*q_proj"
# transformers 5.0's own load_adapter finds no adapter outside of `model.model`; PEFT's does.
OWN_LORA = MEMORY_LORA if transformers.__version__ >= "5.2" else ["q_proj"]


@pytest.fixture
def restoring() -> Iterator[None]:
    """from_pretrained attaches what it finds, as long as the test runs."""
    engram_cli.hf.enable()
    yield
    engram_cli.hf.disable()


@pytest.fixture
def base(small_vocab: CompressedVocab, bundle: Path, tmp_path: Path) -> Path:
    """A checkpoint without a memory."""
    llama(small_vocab.vocab_size).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def carrying(base: Path, bundle: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(base).eval()
    wake(attach(model, bundle))
    return model


def moved(model: nn.Module) -> None:
    """Random steps of what an adapter trains."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def adapter_names(folder: Path) -> list[str]:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return sorted(file.keys())


CASES: dict[str, dict[str, Any]] = {
    "backbone": {"target_modules": ["q_proj"]},
    "projections": {"target_modules": MEMORY_LORA},
    "rows": {"target_modules": r".*engram.*embedding\.embedding|.*q_proj"},
    "a copy": {"target_modules": ["q_proj"], "modules_to_save": ["engram"]},
    "a copied part": {"target_modules": ["q_proj"], "modules_to_save": ["value_proj"]},
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_with_the_memory_under_it(
    case: str, base: Path, bundle: Path, tmp_path: Path
) -> None:
    model = carrying(base, bundle)
    before, bare = logits(model, IDS), parameters(model.engram)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **CASES[case])).eval()
    moved(adapted)
    expected = logits(adapted, IDS)
    assert not torch.equal(expected, before)
    adapted.save_pretrained(tmp_path / "saved")
    has_parts = any(".engram." in name for name in adapter_names(tmp_path / "saved"))
    assert has_parts == (case != "backbone")

    again = LlamaForCausalLM.from_pretrained(base).eval()
    memory = attach(again, tmp_path / "saved")
    assert all(torch.equal(value, bare[name]) for name, value in parameters(memory).items())
    again = peft.PeftModel.from_pretrained(again, tmp_path / "saved").eval()
    assert torch.equal(logits(again, IDS), expected)
    with again.disable_adapter():
        assert torch.equal(logits(again, IDS), before)


def test_it_is_restored_by_itself(
    base: Path, bundle: Path, tmp_path: Path, restoring: None
) -> None:
    model = carrying(base, bundle)
    model.save_pretrained(tmp_path / "model")
    expected = logits(model, IDS)
    for owner in (LlamaForCausalLM, transformers.AutoModelForCausalLM):
        found = owner.from_pretrained(tmp_path / "model").eval()
        assert torch.equal(logits(found, IDS), expected)
    found, info = LlamaForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(found.eval(), IDS), expected)
    model.save_pretrained(tmp_path / "outer" / "inner")
    found = LlamaForCausalLM.from_pretrained(tmp_path / "outer", subfolder="inner").eval()
    assert torch.equal(logits(found, IDS), expected)

    engram_cli.hf.enable(placement="host")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "model").engram.tiers is not None
    engram_cli.hf.enable()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=MEMORY_LORA)).eval()
    moved(adapted)
    expected = logits(adapted, IDS)
    adapted.save_pretrained(tmp_path / "adapter")
    plain = LlamaForCausalLM.from_pretrained(base)
    assert not memories(plain)
    found = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.equal(logits(found, IDS), expected)
    if OWN_LORA == MEMORY_LORA:
        found = LlamaForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        assert torch.equal(logits(found, IDS), expected)
    engram_cli.hf.disable()
    assert not memories(LlamaForCausalLM.from_pretrained(tmp_path / "model"))


def test_adapters_added_by_transformers(base: Path, bundle: Path, tmp_path: Path) -> None:
    model = carrying(base, bundle)
    try:
        transformers.utils.check_peft_version(transformers.integrations.peft.MIN_PEFT_VERSION)
    except ValueError as error:
        pytest.skip(str(error))
    model.add_adapter(peft.LoraConfig(r=2, target_modules=OWN_LORA))
    moved(model)
    expected = logits(model, IDS)
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    again = LlamaForCausalLM.from_pretrained(base).eval()
    attach(again, tmp_path / "saved")
    again.load_adapter(tmp_path / "saved")
    assert torch.equal(logits(again, IDS), expected)


def test_quantised_rows_in_a_copy(base: Path, small_vocab: CompressedVocab, tmp_path: Path) -> None:
    bundle = quantised_bundle(tmp_path / "int8", small_vocab, "int8")
    model = carrying(base, bundle)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["engram"])
    adapted = peft.get_peft_model(model, config).eval()
    moved(adapted)
    adapted.save_pretrained(tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(base).eval()
    attach(again, tmp_path / "saved", placement="host")
    again = peft.PeftModel.from_pretrained(again, tmp_path / "saved").eval()
    assert torch.equal(logits(again, IDS), logits(adapted, IDS))


def test_a_merged_adapter_and_an_adapter_called_engram(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=2, target_modules=MEMORY_LORA)
    adapted = peft.get_peft_model(carrying(base, bundle), config).eval()
    moved(adapted)
    expected = logits(adapted, IDS)
    adapted.merge_adapter()
    with pytest.raises(RuntimeAttachError, match="an adapter is merged into a Linear"):
        adapted.save_pretrained(tmp_path / "saved")
    adapted.unmerge_adapter()
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    attach(again, tmp_path / "merged")
    torch.testing.assert_close(logits(again, IDS), expected, atol=1e-5, rtol=1e-5)

    other = peft.get_peft_model(carrying(base, bundle), config, adapter_name="engram")
    with pytest.raises(RuntimeAttachError, match="adapter and a memory are both called engram"):
        other.save_pretrained(tmp_path / "names")
    assert not (tmp_path / "names").exists()


def trainer(model: nn.Module, folder: Path, steps: int, **options: Any) -> Any:
    lines = [{"input_ids": IDS[0], "labels": IDS[0]}] * 4
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=lines, eval_dataset=lines)


@pytest.mark.parametrize("case", ["no adapter", "projections", "a copy"])
def test_a_trainers_checkpoints_hold_it_and_are_resumed(
    case: str, base: Path, bundle: Path, tmp_path: Path
) -> None:
    def made() -> nn.Module:
        torch.manual_seed(1)
        model = carrying(base, bundle)
        if case == "no adapter":
            return model
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **CASES[case]))
        for name, parameter in adapted.named_parameters():
            if ".engram." in name and "original_module" not in name:
                parameter.requires_grad_(True)
        return adapted

    unbroken = trainer(made(), tmp_path / "whole", 2)
    unbroken.train()
    trainer(made(), tmp_path / "run", 1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert (checkpoint / "engram" / "engram.json").exists()
    resumed = trainer(made(), tmp_path / "run", 2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    weights = dict(unbroken.model.named_parameters())
    for name, value in resumed.model.named_parameters():
        torch.testing.assert_close(value, weights[name], msg=name)
    assert any("lora" in name or "value_proj" in name for name in weights)


def test_the_best_checkpoint_is_loaded_with_its_memory(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    model = carrying(base, bundle)
    best = trainer(
        model,
        tmp_path / "run",
        3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the first is best
        eval_strategy="steps",
        eval_steps=1,
    )
    best.train()
    assert best.state.best_model_checkpoint.endswith("checkpoint-1")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-1").eval()
    saved = parameters(attach(again, tmp_path / "run" / "checkpoint-1"))
    last = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-3").eval()
    assert any(
        not torch.equal(value, saved[name])
        for name, value in parameters(attach(last, tmp_path / "run" / "checkpoint-3")).items()
    )
    assert all(torch.equal(value, saved[name]) for name, value in parameters(model.engram).items())
    assert torch.equal(logits(copy.deepcopy(model).eval(), IDS), logits(again, IDS))

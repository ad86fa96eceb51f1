"""Models on the Hugging Face Hub: what is uploaded with one, and bundles out of its cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from tiny_models import llama, logits, text, wake
from transformers import LlamaForCausalLM
from transformers.utils import hub

import engram_cli.hf
from engram_cli.errors import InputError
from engram_cli.runtime import attach, load, memories
from engram_cli.vocab.compress import CompressedVocab

IDS = text(200, 2, 10)
engram_cli.hf.disable()  # until a test enables it
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(small_vocab: CompressedVocab, bundle: Path) -> LlamaForCausalLM:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    return model


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that uploads end in, instead of the Hub."""

    def create_commit(*args: Any, operations: Any, **kwargs: Any) -> None:
        for operation in operations:
            target = tmp_path / "hub" / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(operation.path_or_fileobj, target)

    def create_repo(*args: Any, **kwargs: Any) -> huggingface_hub.RepoUrl:
        return huggingface_hub.RepoUrl("https://huggingface.co/org/name")

    def card(*args: Any, **kwargs: Any) -> huggingface_hub.ModelCard:
        return huggingface_hub.ModelCard("a card")

    for name, fake in (("create_commit", create_commit), ("create_repo", create_repo)):
        monkeypatch.setattr(huggingface_hub.HfApi, name, fake)
        for module in (hub, __import__("transformers").modeling_utils):
            if hasattr(module, name):  # before transformers 5.24 or so
                monkeypatch.setattr(module, name, fake)
    for module in (hub, __import__("transformers").modeling_utils):
        monkeypatch.setattr(module, "create_and_tag_model_card", card)
    return tmp_path / "hub"


def push(model: LlamaForCausalLM, folder: Path) -> None:
    model.push_to_hub("org/name")


def save_and_push(model: LlamaForCausalLM, folder: Path) -> None:
    model.save_pretrained(str(folder), push_to_hub=True, repo_id="org/name")


@pytest.mark.parametrize("upload", [push, save_and_push])
def test_the_bundle_is_uploaded_with_the_model(
    upload: Callable[..., None], model: LlamaForCausalLM, uploads: Path, tmp_path: Path
) -> None:
    upload(model, tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(uploads).eval()
    attach(again, uploads)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert "_get_files_timestamps" not in vars(model)


def test_a_trainer_uploads_the_bundle_between_saves(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer, TrainingArguments, trainer

    found: list[tuple[str, dict[str, torch.Tensor]]] = []

    def upload_folder(*args: Any, folder_path: str, commit_message: str, **kwargs: Any) -> Any:
        again = LlamaForCausalLM.from_pretrained(folder_path).eval()
        attach(again, folder_path)
        found.append((commit_message, again.state_dict()))
        return Future()

    class Future:
        def done(self) -> bool:
            return True

        def result(self) -> None:
            return None

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    if hasattr(trainer, "upload_folder"):  # before transformers 5.24 or so
        monkeypatch.setattr(trainer, "upload_folder", upload_folder)

    def init_hf_repo(self: Any, *args: Any, **kwargs: Any) -> None:
        self.hub_model_id, self.push_in_progress = "org/name", None

    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        push_to_hub=True,
        hub_model_id="org/name",
        hub_strategy="every_save",
        report_to="none",
        use_cpu=True,
    )
    lines = [{"input_ids": ids, "labels": ids} for ids in text(60, 8, 12)]
    own = Trainer(model, arguments, train_dataset=lines)
    own.train()
    messages = [message for message, _ in found]
    assert messages[:2] == ["Training in progress, step 1", "Training in progress, step 2"]
    names = [name for name in found[0][1] if "engram" in name]
    assert any(not torch.equal(found[0][1][name], found[1][1][name]) for name in names)
    for name, value in model.state_dict().items():
        assert torch.equal(found[1][1][name], value), name


@pytest.fixture
def cached(model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """org/name in the Hub's cache on this machine, and no network."""
    home = tmp_path / "cache" / "models--org--name"
    model.save_pretrained(home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_on_the_hub_stands_for_its_bundle(
    cached: Path, model: LlamaForCausalLM, small_vocab: CompressedVocab
) -> None:
    again = llama(small_vocab.vocab_size)
    attach(again, "org/name")
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    with torch.no_grad():
        again.engram.layers["1"].value_proj.weight.zero_()
    load(again, "org/name")
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    with pytest.raises(InputError, match="there is no folder org/other, and the Hub gave no such"):
        attach(again, "org/other", name="other")
    shutil.rmtree(next(cached.glob("models--org--name/snapshots/*/engram")))
    with pytest.raises(InputError, match="no bundle at"):
        attach(again, "org/name", name="other")


def test_from_pretrained_attaches_what_the_hub_has(cached: Path, model: LlamaForCausalLM) -> None:
    engram_cli.hf.enable()
    try:
        again = LlamaForCausalLM.from_pretrained("org/name", cache_dir=cached).eval()
        assert torch.equal(logits(again, IDS), logits(model, IDS))
        shutil.rmtree(next(cached.glob("models--org--name/snapshots/*/engram")))
        assert not memories(LlamaForCausalLM.from_pretrained("org/name", cache_dir=cached))
    finally:
        engram_cli.hf.disable()

"""Saved with their model: save_pretrained of transformers, what it leaves out, what it keeps."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_bundles import quantised_bundle
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import (
    MODULES,
    llama,
    logits,
    make_bundle,
    make_layout,
    make_spec,
    parameters,
    spec_of,
    text,
    wake,
)
from torch import nn
from transformers import LlamaForCausalLM

from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.formats import bundle_writer
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import attach, detach, load, memories
from engram_cli.vocab.compress import CompressedVocab

IDS = text(200, 2, 10)


def carrying(vocab: CompressedVocab, bundle: Path, **options: Any) -> LlamaForCausalLM:
    model = llama(vocab.vocab_size)
    wake(attach(model, bundle, **options))
    return model


def loaded(folder: Path, **options: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    attach(model, folder, **options)
    return model


def names_in(folder: Path) -> set[str]:
    """The tensors in the model's own files."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= set(opened.keys())
    return found


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back_with_its_memory(
    kind: str, dtype: torch.dtype, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    llama(small_vocab.vocab_size).to(dtype).save_pretrained(tmp_path / "bare")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "bare").eval()
    memory = attach(model, make_bundle(tmp_path / "bundle", spec_of(small_vocab, kind)))
    wake(memory)
    weights, expected = parameters(memory), logits(model, IDS)
    order = list(dict(model.named_children()))

    model.save_pretrained(tmp_path / "saved")
    assert names_in(tmp_path / "saved") == names_in(tmp_path / "bare")
    assert list(dict(model.named_children())) == order
    assert torch.equal(logits(model, IDS), expected)

    again = loaded(tmp_path / "saved")
    assert parameters(again.engram).keys() == weights.keys()
    assert all(
        torch.equal(value, weights[name]) for name, value in parameters(again.engram).items()
    )
    assert torch.equal(logits(again, IDS), expected)


@pytest.mark.parametrize("placement", ["hbm", "host", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "fp8_e8m0"])
def test_rows_come_back_wherever_they_lie(
    placement: str, dtype: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    if dtype == "float32":
        make_bundle(tmp_path / "bundle", make_spec(make_layout(small_vocab), dim=32))
    else:
        quantised_bundle(tmp_path / "bundle", small_vocab, dtype)
    model = carrying(small_vocab, tmp_path / "bundle", placement=placement)
    expected = logits(model, IDS)
    model.save_pretrained(tmp_path / "saved")
    detach(model)
    shutil.rmtree(tmp_path / "bundle")
    read_bundle(tmp_path / "saved" / "engram", verify=True)
    for again in ("hbm", placement):
        found = loaded(tmp_path / "saved", placement=again)
        assert torch.equal(logits(found, IDS), expected)
        detach(found)


def test_several_memories_and_what_was_saved_before(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    for name in ("zeta", "engram", "code"):
        wake(attach(model, bundle, name=name))
    with torch.no_grad():
        model.engram_code.layers["1"].value_proj.weight.neg_()
    expected = logits(model, IDS)
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert list(memories(again)) == ["zeta", "engram", "code"]
    assert torch.equal(logits(again, IDS), expected)
    one = LlamaForCausalLM.from_pretrained(tmp_path)
    code = attach(one, tmp_path, name="code")
    assert torch.equal(
        code.layers["1"].value_proj.weight, model.engram_code.layers["1"].value_proj.weight
    )
    assert list(memories(one)) == ["code"]

    shutil.copytree(bundle, tmp_path / "engram_mine")  # written by `engram attach`, and kept
    detach(model, "zeta")
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("engram*")) == [
        "engram",
        "engram_code",
        "engram_mine",
    ]
    assert list(memories(loaded(tmp_path))) == ["engram", "code"]
    shutil.rmtree(tmp_path / "engram_code")
    fresh = llama(small_vocab.vocab_size)
    with pytest.raises(ArtifactError, match="'engram_code', which is missing"):
        attach(fresh, tmp_path)
    shutil.copytree(tmp_path / "engram", tmp_path / "engram_code")
    (tmp_path / "engram_code" / "dense.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError):
        attach(fresh, tmp_path)
    assert not memories(fresh)
    assert not any(module._forward_pre_hooks for module in fresh.modules())


def test_shards_and_a_state_dict_of_the_callers(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = carrying(small_vocab, bundle)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert not any("engram" in name for name in names_in(tmp_path / "shards"))
    assert torch.equal(logits(loaded(tmp_path / "shards"), IDS), logits(model, IDS))

    given = {name: value * 2 for name, value in model.state_dict().items()}
    kept = dict(given)
    model.save_pretrained(tmp_path / "given", state_dict=given)
    assert given.keys() == kept.keys()
    again = loaded(tmp_path / "given")
    for name, value in again.state_dict().items():
        if "offsets" not in name:
            assert torch.equal(value, kept[name]), name
    given = {name: value for name, value in kept.items() if not name.startswith("engram.")}
    model.save_pretrained(tmp_path / "part", state_dict=given)  # the memory as it is
    assert torch.equal(
        loaded(tmp_path / "part").engram.layers["1"].value_proj.weight,
        model.engram.layers["1"].value_proj.weight,
    )
    cut = {n: v[:1] if n == "engram.layers.1.value_proj.weight" else v for n, v in kept.items()}
    with pytest.raises(Exception, match=r"value_proj.weight of layer 1 has shape \(1, 16\)"):
        model.save_pretrained(tmp_path / "cut", state_dict=cut)


def test_another_process_writes_nothing(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = carrying(small_vocab, bundle)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "engram").exists()


def test_what_engram_did_not_write_stays(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = carrying(small_vocab, bundle)
    (tmp_path / "engram").mkdir()
    (tmp_path / "engram" / "thesis.txt").write_text("all of it")
    with pytest.raises(
        OutputError, match="engram is no bundle, and the memory would be saved there"
    ):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["engram"]
    shutil.rmtree(tmp_path / "engram")
    (tmp_path / "engram").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is a symbolic link"):
        model.save_pretrained(tmp_path)


def test_a_copied_model_saves_its_own_memory(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = copy.deepcopy(carrying(small_vocab, bundle))
    with torch.no_grad():
        model.engram.layers["2"].value_proj.weight.mul_(3)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path), IDS), logits(model, IDS))
    plain = llama(small_vocab.vocab_size)
    plain.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "engram").exists()


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_full_disk_and_a_killed_process_leave_the_old_bundle(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = carrying(small_vocab, bundle)
    model.save_pretrained(tmp_path / "saved")
    expected = logits(model, IDS)
    with torch.no_grad():
        model.engram.layers["2"].value_proj.weight.mul_(3)
    monkeypatch.setattr(bundle_writer, "_write_small", full)
    for folder in ("saved", "new"):
        with pytest.raises(OutputError, match="No space left on device"):
            model.save_pretrained(tmp_path / folder)
    assert not (tmp_path / "new" / "engram").exists()
    monkeypatch.setattr(bundle_writer, "_write_small", killed)
    for folder in ("saved", "new"):
        child = os.fork()
        if child == 0:
            model.save_pretrained(tmp_path / folder)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert torch.equal(logits(loaded(tmp_path / "saved"), IDS), expected)
    with pytest.raises(InputError, match="no bundle at"):
        attach(llama(small_vocab.vocab_size), tmp_path / "new")
    monkeypatch.undo()
    model.save_pretrained(tmp_path / "new")
    assert not list((tmp_path / "new").glob(".engram-*"))
    assert torch.equal(logits(loaded(tmp_path / "new"), IDS), logits(model, IDS))


def test_weights_among_the_models_are_loaded(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = carrying(small_vocab, bundle)
    detach(model)
    model.save_pretrained(tmp_path)
    memory = attach(model, bundle)
    wake(memory)
    state = {f"module.{k}": v.clone() for k, v in model.state_dict().items() if "lm_head" not in k}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="has the memory engram among its model's tensors"):
        attach(llama(small_vocab.vocab_size), tmp_path)
    again = llama(small_vocab.vocab_size)
    held = attach(again, bundle)
    kept = dict(held.named_parameters())
    assert load(again, tmp_path) is held
    assert all(held.get_parameter(name) is value for name, value in kept.items())
    assert torch.equal(logits(again, IDS), logits(model, IDS))

    before = parameters(held)
    one = "module.engram.layers.1.multi_head_embedding.offsets"
    for wrong, message in (
        ({one: state[one] + 1}, "offsets in model.safetensors has other values"),
        ({one: state[one].float()}, "offsets in model.safetensors has torch.float32"),
        ({"module.engram.layers.1.value_proj.weight": torch.ones(3)}, r"\(3,\), not torch.float32"),
    ):
        save_file(state | wrong, tmp_path / "model.safetensors")
        with pytest.raises(MismatchError, match=message):
            load(again, tmp_path)
    save_file(
        {k: v for k, v in state.items() if "layers.2.norm" not in k}, tmp_path / "model.safetensors"
    )
    with pytest.raises(MismatchError, match=r"has no layers\.2\.norm"):
        load(again, tmp_path)
    save_file(
        state | {"engram.layers.1.value_proj.weight": torch.ones(3)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ArtifactError, match="twice"):
        load(again, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in parameters(held).items())


class Outer(nn.Module):
    """A model of another library, with a way of saving of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def save_pretrained(self, save_directory: Path) -> list[str]:
        return sorted(self.state_dict())


def test_a_model_around_the_one_that_carries_it(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model.model, bundle))  # inside the model that is saved
    model.save_pretrained(tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    attach(again.model, tmp_path / "saved")
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    outer = Outer(llama(small_vocab.vocab_size))
    names = outer.save_pretrained(tmp_path / "outer")
    wake(attach(outer.inner.model, bundle))
    attach(outer, bundle, name="other", layers=outer.inner.model.layers)
    assert outer.save_pretrained(tmp_path / "outer") == names
    assert {p.name for p in (tmp_path / "outer").iterdir()} == {"engram", "engram_other"}

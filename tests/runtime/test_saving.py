"""save_engram and load: every bit of a memory, through a bundle and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
from transformers import PreTrainedModel

from engram_cli.errors import MismatchError, OutputError, RuntimeAttachError
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import attach, detach, load, row_parameters, save_engram
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_memory_comes_back_bit_for_bit(
    small_vocab: CompressedVocab, tmp_path: Path, dtype: torch.dtype, module: str, stored: str
) -> None:
    model = llama(small_vocab.vocab_size).to(dtype)
    path = make_bundle(tmp_path / "engram", spec_of(small_vocab, module, dtype=stored))
    memory = attach(model, path)
    wake(memory)
    with torch.no_grad():
        row_parameters(model)[0].mul_(1.1)
    weights, expected = parameters(memory), logits(model, text(200, 2, 9))
    saved = save_engram(model, tmp_path / "saved")
    assert read_bundle(saved, verify=True).spec == memory.spec

    detach(model)
    again = attach(model, saved)
    assert all(torch.equal(again.state_dict()[name], weights[name]) for name in weights)
    assert torch.equal(logits(model, text(200, 2, 9)), expected)
    detach(model)

    held = attach(model, path)
    kept = dict(held.named_parameters())
    assert load(model, saved, verify=True) is held
    assert all(held.get_parameter(name) is kept[name] for name in kept)
    assert all(torch.equal(held.state_dict()[name], weights[name]) for name in weights)


def test_equal_memories_give_equal_bytes(awake: PreTrainedModel, tmp_path: Path) -> None:
    first, second = (save_engram(awake, tmp_path / name) for name in ("one", "two"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_it_may_replace_the_bundle_it_maps(awake: PreTrainedModel, tmp_path: Path) -> None:
    path = save_engram(awake, tmp_path / "engram")
    detach(awake)
    memory = attach(awake, path)
    with torch.no_grad():
        rows = memory.layers["1"].multi_head_embedding.embedding.weight.neg_().clone()
    with pytest.raises(OutputError, match="already exists"):
        save_engram(awake, path)
    save_engram(awake, path, force=True)
    assert torch.equal(memory.layers["1"].multi_head_embedding.embedding.weight, rows)
    detach(awake)
    again = attach(awake, path)
    assert torch.equal(again.layers["1"].multi_head_embedding.embedding.weight, rows)


def test_what_is_no_bundle_is_kept_even_with_force(awake: PreTrainedModel, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weeks of training")
    with pytest.raises(OutputError, match="is no bundle"):
        save_engram(awake, checkpoint, force=True)
    assert [path.name for path in checkpoint.iterdir()] == ["model.safetensors"]


def test_weights_that_no_bundle_holds(awake: PreTrainedModel, tmp_path: Path) -> None:
    awake.to(torch.float64)
    with pytest.raises(RuntimeAttachError, match=r"float64, a bundle has float32"):
        save_engram(awake, tmp_path / "engram")
    assert not (tmp_path / "engram").exists()
    detach(awake)
    with pytest.raises(RuntimeAttachError, match="carries no memory"):
        save_engram(awake, tmp_path / "engram")


def test_another_bundle_is_not_loaded(
    awake: PreTrainedModel, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    before = parameters(awake)
    others = {
        "fingerprint": make_spec(make_layout(small_vocab, (1, 3))),
        "layers": make_spec(make_layout(small_vocab), layers=(1,)),
        "row size": make_spec(make_layout(small_vocab), dim=8),
        "packing": make_spec(make_layout(small_vocab), packed=True),
    }
    for what, spec in others.items():
        path = make_bundle(tmp_path / what, spec)
        with pytest.raises(MismatchError, match=f"has {what}"):
            load(awake, path)
    assert all(torch.equal(value, before[name]) for name, value in awake.state_dict().items())

"""Attached and detached: nothing changes before training, and nothing is left afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_models import LAYERS, logits, make_bundle, make_layout, make_spec, parameters, text, wake
from transformers import PreTrainedModel

import engram_cli
from engram_cli.runtime import attach, detach
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ["random", "zero"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_a_fresh_bundle_changes_no_bit(
    bare: PreTrainedModel,
    small_vocab: CompressedVocab,
    tmp_path: Path,
    dtype: torch.dtype,
    rows: str,
    stored: str,
) -> None:
    path = tmp_path / "engram"
    make_bundle(path, make_spec(make_layout(small_vocab), stored), zero=rows == "zero")
    model = bare.to(dtype)
    ids = text(small_vocab.vocab_size, 2, 12)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    before = logits(model, ids), logits(model, ids, attention_mask=mask)
    memory = attach(model, path)
    assert torch.equal(logits(model, ids), before[0])
    assert torch.equal(logits(model, ids, attention_mask=mask), before[1])
    for layer in memory.layers.values():
        assert layer.value_proj.weight.dtype == dtype
        assert layer.multi_head_embedding.embedding.weight.dtype == getattr(torch, stored)


def test_detach_restores_bit_for_bit(bare: PreTrainedModel, bundle: Path) -> None:
    ids = text(200, 2, 12)
    before, weights = logits(bare, ids), parameters(bare)
    names = [name for name, _ in bare.named_modules()]
    memory = attach(bare, bundle)
    assert bare.engram is memory
    wake(memory)
    assert not torch.equal(logits(bare, ids), before), "the memory does nothing"
    detach(bare)
    assert torch.equal(logits(bare, ids), before)
    assert [name for name, _ in bare.named_modules()] == names
    assert all(
        not module._forward_pre_hooks and not module._forward_hooks for module in bare.modules()
    )
    after = parameters(bare)
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    attach(bare, bundle)  # and it can be attached again
    assert torch.equal(logits(bare, ids), before)


def test_a_state_dict_holds_the_memory(awake: PreTrainedModel, bundle: Path) -> None:
    weights = parameters(awake)
    own = {name for name in weights if name.startswith("engram.")}
    assert "engram.layers.1.multi_head_embedding.embedding.weight" in own
    assert "engram.layers.2.short_conv.conv.weight" in own
    ids = text(200, 1, 9)
    expected = logits(awake, ids)
    detach(awake)
    attach(awake, bundle)
    assert not torch.equal(logits(awake, ids), expected)
    awake.load_state_dict(weights)
    assert torch.equal(logits(awake, ids), expected)


def test_training_never_reaches_the_file(bare: PreTrainedModel, bundle: Path) -> None:
    memory = attach(bare, bundle)
    rows = memory.layers["1"].multi_head_embedding.embedding.weight
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with torch.no_grad():
        rows.add_(1)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_layer_in_many_shards_is_one_table(
    bare: PreTrainedModel, small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    spec = make_spec(make_layout(small_vocab))
    path = make_bundle(tmp_path / "engram", spec, shard_bytes=4096 + 50 * spec.row_bytes)
    assert len(list(path.glob("rows-*"))) > 4
    ids = text(200, 1, 9)
    wake(attach(bare, bundle))
    expected = logits(bare, ids)
    detach(bare)
    wake(attach(bare, path, verify=True))
    assert torch.equal(logits(bare, ids), expected)


def test_rows_may_stay_on_another_device(bare: PreTrainedModel, bundle: Path) -> None:
    ids = text(200, 1, 9)
    wake(attach(bare, bundle))
    expected = logits(bare, ids)
    detach(bare)
    memory = attach(bare, bundle, rows_device="cpu")
    wake(memory)
    assert memory.layers["1"].multi_head_embedding.embedding.weight.device.type == "cpu"
    assert torch.equal(logits(bare, ids), expected)


def test_a_copied_model_has_its_own_memory(awake: PreTrainedModel) -> None:
    ids = text(200, 1, 9)
    expected = logits(awake, ids)
    twin = copy.deepcopy(awake)
    assert torch.equal(logits(twin, ids), expected)
    with torch.no_grad():
        for parameter in awake.engram.parameters():
            parameter.zero_()
    assert torch.equal(logits(twin, ids), expected)
    detach(awake)
    assert torch.equal(logits(twin, ids), expected)
    detach(twin)
    assert torch.equal(logits(twin, ids), logits(awake, ids))


def test_it_adds_before_the_layers_it_names(awake: PreTrainedModel) -> None:
    ids = text(200, 1, 9)
    with torch.no_grad():
        with_memory = awake(ids, output_hidden_states=True).hidden_states
        detach(awake)
        without = awake(ids, output_hidden_states=True).hidden_states
    assert len(without) == LAYERS + 1
    assert torch.equal(with_memory[1], without[1]), "the memory of layer 1 belongs to layer 1"
    assert not torch.equal(with_memory[2], without[2])


def test_the_model_moves_with_its_memory(awake: PreTrainedModel) -> None:
    ids = text(200, 1, 9)
    expected = logits(awake, ids)
    awake.to(torch.float64)
    assert awake.engram.layers["1"].value_proj.weight.dtype == torch.float64
    torch.testing.assert_close(logits(awake, ids).float(), expected, atol=1e-4, rtol=1e-4)
    awake.eval()
    assert not awake.engram.training
    assert awake.train().engram.training


def test_the_public_names(bare: PreTrainedModel, bundle: Path) -> None:
    assert engram_cli.attach is attach
    assert engram_cli.detach is detach
    engram_cli.attach(bare, str(bundle))
    engram_cli.detach(bare)

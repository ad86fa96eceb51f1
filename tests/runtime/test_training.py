"""Training: every parameter and the rows have the right gradients, and the loss falls."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_models import make_bundle, make_layout, make_spec, text, wake
from torch import Tensor
from transformers import PreTrainedModel

from engram_cli.hashing.hasher import hash_tokens
from engram_cli.runtime import attach, detach
from engram_cli.vocab.compress import CompressedVocab

VOCAB = 200


def loss_of(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    return model(ids, attention_mask=mask, labels=labels).loss


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def rows_of(model: PreTrainedModel, layer: str) -> torch.nn.Parameter:
    return model.engram.layers[layer].multi_head_embedding.embedding.weight


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_reach_everything_and_only_the_rows_looked_up(
    awake: PreTrainedModel, small_vocab: CompressedVocab, padded: bool
) -> None:
    ids = text(VOCAB, 2, 10)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
    awake.train()
    loss_of(awake, ids, mask).backward()
    for name, parameter in awake.engram.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name
    layout = make_layout(small_vocab)
    for layer in (1, 2):
        begin = 4 if padded else 0
        looked_up = [
            hash_tokens(layout, ids[0, begin:].numpy(), layer),
            hash_tokens(layout, ids[1].numpy(), layer),
        ]
        expected = {int(row) for rows in looked_up for row in rows.reshape(-1)}
        gradient = rows_of(awake, str(layer)).grad
        touched = set(gradient.any(dim=1).nonzero().flatten().tolist())
        # The last position of a line has no label, so its rows may go without.
        last = {int(row) for rows in looked_up for row in rows[-1]}
        assert touched <= expected
        assert expected - last <= touched


@pytest.mark.parametrize("zero", [False, True], ids=["random rows", "zero rows"])
def test_a_fresh_bundle_trains(
    bare: PreTrainedModel, small_vocab: CompressedVocab, tmp_path: Path, zero: bool
) -> None:
    spec = make_spec(make_layout(small_vocab))
    memory = attach(bare, make_bundle(tmp_path / "engram", spec, zero=zero))
    before = {name: value.clone() for name, value in memory.named_parameters()}
    for parameter in bare.parameters():
        parameter.requires_grad_(False)
    for parameter in memory.parameters():
        parameter.requires_grad_(True)
    without_dropout(bare).train()
    optimizer = torch.optim.Adam(memory.parameters(), lr=1e-2)
    ids = text(VOCAB, 4, 16)
    losses = []
    for _ in range(12):
        loss = loss_of(bare, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(a > b for a, b in pairwise(losses))
    for name, parameter in memory.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} never moved"


def test_frozen_rows_stay(bare: PreTrainedModel, bundle: Path) -> None:
    memory = attach(bare, bundle, rows_trainable=False)
    wake(memory)
    loss_of(bare.train(), text(VOCAB, 2, 8)).backward()
    assert rows_of(bare, "1").grad is None
    assert memory.layers["1"].value_proj.weight.grad.any()


def test_sparse_gradients_are_the_dense_ones(bare: PreTrainedModel, bundle: Path) -> None:
    bare.eval()
    found = []
    for sparse in (False, True):
        wake(attach(bare, bundle, sparse_gradients=sparse))
        loss_of(bare, text(VOCAB, 2, 8)).backward()
        found.append(rows_of(bare, "2").grad)
        detach(bare)
    assert found[1].is_sparse
    torch.testing.assert_close(found[1].to_dense(), found[0])


def test_gradient_checkpointing_changes_nothing(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 8)
    without_dropout(awake).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            awake.config.use_cache = False
            enable = "activation_checkpointing_enable"  # its name before transformers 5.2x:
            getattr(awake, enable, getattr(awake, "gradient_checkpointing_enable", None))()
        awake.zero_grad()
        first = loss_of(awake, ids)
        second = loss_of(awake, text(VOCAB, 2, 8, seed=5))  # two forwards, then one backward
        (first + second).backward()
        gradients.append({n: p.grad.clone() for n, p in awake.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_a_bfloat16_model_trains_its_bfloat16_rows(
    bare: PreTrainedModel, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    path = make_bundle(tmp_path / "engram", make_spec(make_layout(small_vocab), "bfloat16"))
    model = bare.to(torch.bfloat16)
    wake(attach(model, path))
    loss_of(model, text(VOCAB, 2, 8)).backward()
    gradient = rows_of(model, "1").grad
    assert gradient.dtype == torch.bfloat16
    assert gradient.any()

"""torch's own clipping takes the sparse gradients of rows, wherever it is called from."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama, text, wake
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from engram_cli.runtime import RowwiseAdagrad, attach, clip_grad_norm, row_parameters
from engram_cli.runtime.sparse_gradients import coalesced
from engram_cli.vocab.compress import CompressedVocab

IDS = text(60, 4, 16)


def model_of(vocab: CompressedVocab, bundle: Path, *, sparse: bool) -> LlamaForCausalLM:
    model = llama(vocab.vocab_size)
    wake(attach(model, bundle, sparse_gradients=sparse))
    return model


def with_gradients(model: nn.Module, times: int = 2) -> nn.Module:
    for _ in range(times):  # a second one is added to the first
        model(IDS, labels=IDS).loss.backward()
    return model


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_norms_and_gradients_are_those_of_dense_rows(
    norm_type: float, foreach: bool | None, small_vocab: CompressedVocab, bundle: Path
) -> None:
    clipped, norms = [], []
    for sparse in (False, True):
        model = with_gradients(model_of(small_vocab, bundle, sparse=sparse))
        assert all(rows.grad.is_sparse == sparse for rows in row_parameters(model))
        norms.append(
            torch.nn.utils.clip_grad_norm_(
                model.parameters(), 0.1, norm_type=norm_type, foreach=foreach
            )
        )
        clipped.append([dense(p.grad) for p in model.parameters()])
    assert norms[0] > 0.2
    torch.testing.assert_close(norms[1], norms[0])
    assert type(norms[1]) is Tensor
    for mine, plain in zip(clipped[1], clipped[0], strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-7, rtol=1e-5)


def torchs_clipping(model: nn.Module, norm: float) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(model.parameters(), norm)


def test_it_is_what_the_packages_own_clipping_does(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    found = []
    for clip in (clip_grad_norm, torchs_clipping):
        model = with_gradients(model_of(small_vocab, bundle, sparse=True))
        norm = clip(model, 0.1)
        found.append([norm, *(coalesced(rows.grad)._values() for rows in row_parameters(model))])
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again: nn.Module = torch.load(file, weights_only=False)
    return again


def moved(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


def thawed(model: nn.Module) -> nn.Module:
    """Frozen when it was attached."""
    for rows in row_parameters(model):
        rows.grad = None
    model.requires_grad_(False)
    return copy.deepcopy(model).requires_grad_(True)


@pytest.mark.parametrize("change", [copied, pickled, moved, thawed])
def test_whatever_becomes_of_the_model(
    change: Any, small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = change(with_gradients(model_of(small_vocab, bundle, sparse=True), 1))
    model.zero_grad()
    with_gradients(model)
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.2
    total = torch.stack([dense(p.grad).float().norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(total, torch.tensor(0.1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("optimizer", [RowwiseAdagrad, torch.optim.SparseAdam, torch.optim.SGD])
def test_optimisers_take_what_was_clipped(
    optimizer: Any, small_vocab: CompressedVocab, bundle: Path
) -> None:
    moved_rows = []
    for sparse in (False, True):
        if optimizer is torch.optim.SparseAdam and not sparse:
            continue
        model = with_gradients(model_of(small_vocab, bundle, sparse=sparse))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        before = [rows.detach().clone() for rows in row_parameters(model)]
        optimizer(row_parameters(model), lr=0.1).step()
        moved_rows.append([a - b for a, b in zip(row_parameters(model), before, strict=True)])
    assert all(change.any() for change in moved_rows[-1])
    for mine, plain in zip(moved_rows[-1], moved_rows[0], strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_a_trainer_with_sparse_gradients_trains_as_with_dense_ones(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    lines = [{"input_ids": ids, "labels": ids} for ids in IDS]
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=3,
        max_grad_norm=0.1,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    weights = []
    for sparse in (False, True):
        model = model_of(small_vocab, bundle, sparse=sparse)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=lines, optimizers=(optimizer, None)
        )
        trainer.train()
        weights.append(dict(model.named_parameters()))
    fresh = dict(model_of(small_vocab, bundle, sparse=True).named_parameters())
    for name, plain in weights[0].items():
        torch.testing.assert_close(weights[1][name], plain, msg=name)
        assert not torch.equal(plain, fresh[name]), name

"""Parameter groups, the row-wise optimiser, and training that goes on where it was saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama, make_bundle, spec_of, text, wake
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import (
    RowwiseAdagrad,
    attach,
    detach,
    parameter_groups,
    row_parameters,
    save_engram,
)
from engram_cli.vocab.compress import CompressedVocab


def test_groups_have_the_papers_recipe(awake: PreTrainedModel) -> None:
    rest, rows = parameter_groups(awake, lr=1e-3, weight_decay=0.1)
    assert (rest["lr"], rest["weight_decay"]) == (1e-3, 0.1)
    assert (rows["lr"], rows["weight_decay"]) == (5e-3, 0.0)
    names = {id(p): name for name, p in awake.named_parameters()}
    assert [names[id(p)] for p in rows["params"]] == [
        f"engram.layers.{layer}.multi_head_embedding.embedding.weight" for layer in (1, 2)
    ]
    assert {id(p) for group in (rest, rows) for p in group["params"]} == set(names)
    torch.optim.AdamW([rest, rows])
    assert parameter_groups(awake, lr=1.0, rows_lr_factor=2.0)[1]["lr"] == 2.0

    for p in row_parameters(awake):
        p.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(awake, lr=1.0)] == ["backbone"]
    awake.requires_grad_(False)
    row_parameters(awake)[0].requires_grad_(True)
    assert [len(group["params"]) for group in parameter_groups(awake, lr=1.0)] == [1]
    detach(awake)
    with pytest.raises(RuntimeAttachError, match="carries no memory"):
        parameter_groups(awake, lr=1.0)


def plain_steps(
    table: Tensor, gradients: list[Tensor], lr: float, eps: float, initial: float
) -> Tensor:
    """The definition, row after row in float64."""
    table = table.double().clone()
    sums = [initial] * len(table)
    for gradient in gradients:
        for row, g in enumerate(gradient.double()):
            if g.any():
                sums[row] += float(g.square().mean())
                table[row] -= lr * g / (sums[row] ** 0.5 + eps)
    return table


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("eps", "initial"), [(1e-8, 0.0), (0.0, 0.0), (0.1, 0.5)])
def test_rowwise_adagrad_is_its_definition(sparse: bool, eps: float, initial: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40, 6, generator=generator)
    table = nn.Embedding(40, 6, sparse=sparse, _weight=start.clone())
    optimiser = RowwiseAdagrad(table.parameters(), lr=0.3, eps=eps, initial=initial)
    gradients = []
    for _ in range(5):
        rows = torch.randint(0, 30, (25,), generator=generator)  # some twice, some never
        optimiser.zero_grad()
        (table(rows) * torch.randn(25, 6, generator=generator)).sum().backward()
        gradients.append(table.weight.grad.to_dense().clone())
        optimiser.step()
    expected = plain_steps(start, gradients, 0.3, eps, initial)
    torch.testing.assert_close(table.weight.detach().double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(table.weight[30:], start[30:])
    state = optimiser.state[table.weight]
    assert [(name, value.shape) for name, value in state.items()] == [("sum", (40,))]


def test_rowwise_adagrad_keeps_to_torchs_ways() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    optimiser = RowwiseAdagrad([{"params": [weight], "lr": 0.5}])

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 6.0
    assert torch.equal(weight, torch.full((3, 2), 0.5))
    twin = nn.Parameter(weight.detach().clone())
    other = RowwiseAdagrad([{"params": [twin], "lr": 0.5}])
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for parameter, stepper in ((weight, optimiser), (twin, other)):
        parameter.grad = torch.full((3, 2), 0.25)
        stepper.step()
    assert torch.equal(weight, twin)
    with pytest.raises(ValueError, match="none may be negative"):
        RowwiseAdagrad([weight], lr=-1.0)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_training_goes_on_with_the_same_losses(
    sparse: bool, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    path = make_bundle(tmp_path / "engram", spec_of(small_vocab, "engram-v1"))

    def start(folder: Path) -> tuple[PreTrainedModel, list[torch.optim.Optimizer]]:
        model = llama(small_vocab.vocab_size).train()
        attach(model, folder, sparse_gradients=sparse)
        rest, rows = parameter_groups(model, lr=1e-2)
        rows_optimiser: Any = RowwiseAdagrad if sparse else torch.optim.Adam
        return model, [torch.optim.AdamW([rest]), rows_optimiser([rows])]

    def train(model: PreTrainedModel, optimisers: list[Any], steps: range) -> list[float]:
        losses = []
        for step in steps:
            ids = text(200, 2, 12, seed=step)
            loss = model(ids, labels=ids).loss
            loss.backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            losses.append(loss.item())
        return losses

    model, optimisers = start(path)
    wake(model.engram)
    train(model, optimisers, range(3))
    saved = save_engram(model, tmp_path / "saved")
    backbone = {k: v.clone() for k, v in model.state_dict().items() if "engram" not in k}
    torch.save([optimiser.state_dict() for optimiser in optimisers], tmp_path / "optimisers.pt")
    expected = train(model, optimisers, range(3, 6))

    model, optimisers = start(saved)
    model.load_state_dict(backbone, strict=False)
    for optimiser, state in zip(optimisers, torch.load(tmp_path / "optimisers.pt"), strict=True):
        optimiser.load_state_dict(state)
    assert train(model, optimisers, range(3, 6)) == expected

"""Activation checkpointing around layers: the backward pass runs a layer again, after the call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LAYERS, MODULES, make_bundle, spec_of, text, wake
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear(self.norm(hidden)).tanh()


Run = Callable[[nn.Module, Tensor], Tensor]


def plainly(block: nn.Module, hidden: Tensor) -> Tensor:
    found: Tensor = block(hidden)
    return found


def reentrant(block: nn.Module, hidden: Tensor) -> Tensor:
    found: Tensor = checkpoint(block, hidden, use_reentrant=True)
    return found


def without_reentry(block: nn.Module, hidden: Tensor) -> Tensor:
    found: Tensor = checkpoint(block, hidden, use_reentrant=False)
    return found


class Decoder(nn.Module):
    """A model of somebody's own, which runs each block as `run` says."""

    def __init__(self, vocab: int, run: Run = plainly) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocab, 32)
        self.blocks = nn.ModuleList(Block(32) for _ in range(LAYERS))
        self.head = nn.Linear(32, vocab)
        self.run = run

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None
    ) -> Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = self.run(block, hidden)
        return self.head(hidden)


def gradients(model: nn.Module, *calls: dict[str, Any]) -> dict[str, Tensor]:
    """Of the sum of all calls' losses, in one backward pass."""
    model.zero_grad()
    losses = [model(**call).logsumexp(-1).square().mean() for call in calls]
    torch.stack(losses).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CALLS = (
    {"input_ids": text(200, 2, 10)},
    {
        "input_ids": text(200, 2, 7, seed=3),
        "attention_mask": torch.tensor([[0] * 3 + [1] * 4, [1] * 7]),
    },
)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("run", [reentrant, without_reentry])
def test_gradients_are_those_of_a_plain_pass(
    run: Run, kind: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "engram", spec_of(small_vocab, kind))
    found = []
    for how in (plainly, run):
        model = Decoder(small_vocab.vocab_size, how)
        wake(attach(model, bundle, layers=list(model.blocks)))
        found.append(gradients(model, *CALLS))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_frozen_backbone_and_a_copy_of_the_model(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    found = []
    for how in (plainly, without_reentry):
        model = Decoder(small_vocab.vocab_size, how).requires_grad_(False)
        wake(attach(model, bundle, layers=list(model.blocks)))
        found.append(gradients(copy.deepcopy(model), *CALLS))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_model_whose_layers_are_wrapped_after_attach(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    found = []
    for wrap in (False, True):
        model = Decoder(small_vocab.vocab_size)
        wake(attach(model, bundle, layers=list(model.blocks)))
        if wrap:
            model.blocks = nn.ModuleList(checkpoint_wrapper(block) for block in model.blocks)
        found.append(list(gradients(model, *CALLS).values()))
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)


def test_a_state_that_grew_meanwhile_changes_no_gradient(
    small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    """The first tokens of a cache have no history, also after it has some."""
    bundle = make_bundle(tmp_path / "engram", spec_of(small_vocab, "engram-v1"))
    found = []
    for how in (plainly, without_reentry):
        model = Decoder(small_vocab.vocab_size, how)
        wake(attach(model, bundle, layers=list(model.blocks)))
        found.append(gradients(model, {**CALLS[0], "past_key_values": DynamicCache()}))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_nothing_is_kept_of_calls_without_a_checkpoint(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = Decoder(small_vocab.vocab_size)
    memory = attach(model, bundle, layers=list(model.blocks))
    model(**CALLS[0])
    assert not memory._replays._kept
    model.run = without_reentry
    with torch.no_grad():
        model(**CALLS[0])
    assert not memory._replays._kept
    model(**CALLS[0])
    assert len(memory._replays._kept) == 2
    model(**CALLS[1])
    assert len(memory._replays._kept) == 2, "the first call's hidden states are gone"


def test_what_cannot_be_found_again_is_an_error(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = Decoder(small_vocab.vocab_size)
    attach(model, bundle, layers=list(model.blocks))
    with pytest.raises(RuntimeAttachError, match="outside a forward call") as caught:
        model.blocks[1](torch.zeros(1, 2, 32))
    assert "activation checkpointing" in caught.value.hint
    model.run = reentrant
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):  # also the inputs
        loss = model(**CALLS[0]).sum()
    with pytest.raises(RuntimeAttachError, match="outside a forward call"):
        loss.backward()


def test_hidden_states_given_with_other_ids_are_not_mixed_up(
    small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    class Given(Decoder):
        """Its first block gets the same hidden states whatever the ids are."""

        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            hidden = self.embed.weight[None, : input_ids.shape[1]].expand(len(input_ids), -1, -1)
            for block in self.blocks:
                hidden = self.run(block, hidden)
            return self.head(hidden)

    spec = spec_of(small_vocab, "engram-v1", decoder_layers=(0, 2))
    model = Given(small_vocab.vocab_size, without_reentry)
    wake(attach(model, make_bundle(tmp_path / "engram", spec), layers=list(model.blocks)))
    first, second = {"input_ids": text(200, 1, 6)}, {"input_ids": text(200, 1, 6, seed=9)}
    gradients(model, first, first)  # the same ids twice are no trouble
    with pytest.raises(RuntimeAttachError, match="several token ids"):
        gradients(model, first, second)


def test_two_memories_in_one_layer_are_an_error(small_vocab: CompressedVocab, bundle: Path) -> None:
    """The second one got what the first one made, which a checkpoint does not keep."""
    model = Decoder(small_vocab.vocab_size, without_reentry)
    for name in ("engram", "other"):
        wake(attach(model, bundle, layers=list(model.blocks), name=name))
    with pytest.raises(RuntimeAttachError, match="outside a forward call"):
        gradients(model, *CALLS)

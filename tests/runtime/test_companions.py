"""The memory beside PEFT, accelerate, autocast and both attention implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime.modes import assisted, beam_search, greedy, left_padding, logits_in_pieces
from tiny_models import llama, logits, text, wake
from transformers import PreTrainedModel

from engram_cli.runtime import attach, detach, memories
from engram_cli.vocab.compress import CompressedVocab

# peft asks transformers by a name that it has deprecated.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@PEFT_WARNS
@pytest.mark.parametrize("order", ["memory first", "LoRA first"])
def test_lora_around_and_inside(order: str, small_vocab: CompressedVocab, bundle: Path) -> None:
    peft = pytest.importorskip("peft")
    model = llama(small_vocab.vocab_size)
    ids = text(200, 2, 10)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    if order == "memory first":
        memory = attach(model, bundle)
        wake(memory)
        wrapped = peft.get_peft_model(model, config)
        memory.requires_grad_(True)  # PEFT freezes whatever is no adapter
    else:
        wrapped = peft.get_peft_model(model, config)
        before = logits(wrapped, ids)
        memory = attach(wrapped, bundle)
        assert torch.equal(logits(wrapped, ids), before)
        wake(memory)
    assert memories(wrapped) == {"engram": memory}
    for mode in (logits_in_pieces, greedy, beam_search):
        mode(wrapped)
    wrapped(ids, labels=ids).loss.backward()
    trained = [name for name, p in wrapped.named_parameters() if p.grad is not None]
    assert any("lora_A" in name for name in trained)
    assert all(p.grad is not None for p in memory.parameters())
    expected = logits(wrapped, ids)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=1e-4)


@PEFT_WARNS
def test_lora_on_the_memorys_own_projections(small_vocab: CompressedVocab, bundle: Path) -> None:
    peft = pytest.importorskip("peft")
    model = llama(small_vocab.vocab_size)
    memory = attach(model, bundle, rows_trainable=False)
    wake(memory)
    ids = text(200, 2, 10)
    expected = logits(model, ids)
    config = peft.LoraConfig(r=2, target_modules=r".*engram.*(value_proj|key_projs\.0)")
    wrapped = peft.get_peft_model(model, config)
    assert torch.equal(logits(wrapped, ids), expected)
    greedy(wrapped)
    wrapped(ids, labels=ids).loss.backward()
    trained = {name for name, p in wrapped.named_parameters() if p.grad is not None}
    assert trained
    assert all("engram.layers" in name and "lora_" in name for name in trained)


def test_accelerates_dispatch(small_vocab: CompressedVocab, bundle: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = llama(small_vocab.vocab_size)
    ids = text(200, 2, 10)
    wake(attach(model, bundle))
    expected = logits(model, ids)
    detach(model)
    model = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    wake(attach(model, bundle))
    assert torch.equal(logits(model, ids), expected)
    for mode in (logits_in_pieces, greedy, left_padding):
        mode(model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(
    implementation: str, small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = llama(small_vocab.vocab_size, attn_implementation=implementation)
    wake(attach(model, bundle))
    assert model.config._attn_implementation == implementation
    for mode in (logits_in_pieces, greedy, left_padding, assisted):
        mode(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(awake: PreTrainedModel, dtype: torch.dtype) -> None:
    ids = text(200, 2, 8)
    expected = logits(awake, ids)
    with torch.autocast("cpu", dtype=dtype):
        found = logits(awake, ids)
        loss = awake(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in awake.engram.parameters())
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()

"""fit: a memory helps at once, the model stays as it was, and equal inputs give equal weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import MODULES, gpt2, llama, make_bundle, parameters, spec_of
from torch import nn

from engram_cli.errors import InputError, RuntimeAttachError, TokenIdError
from engram_cli.runtime import attach, detach, evaluate_losses, fit, fitting, load, save_engram
from engram_cli.vocab.compress import CompressedVocab

SIZES: dict[str, Any] = {"steps": 24, "batch_tokens": 128, "context": 32}


def documents(count: int, seed: int, length: int = 100) -> Iterator[NDArray[np.int64]]:
    """Texts in which a token says the next one, nine times in ten."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        ids = [int(generator.integers(3, 60))]
        for _ in range(length - 1):
            random = generator.random() < 0.1
            ids.append(int(generator.integers(3, 60)) if random else (ids[-1] * 7 + 5) % 57 + 3)
        yield np.array(ids)


def carrying(vocab: CompressedVocab, folder: Path, kind: str = "engram-v1") -> Any:
    model = llama(vocab.vocab_size)
    attach(model, make_bundle(folder / "bundle", spec_of(vocab, kind, dim=16)))
    return model


@pytest.mark.parametrize("kind", MODULES)
def test_the_loss_of_other_texts_falls(
    kind: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    model = carrying(small_vocab, tmp_path, kind).train()
    memory = model.engram
    memory.requires_grad_(False)
    backbone = {n: v for n, v in parameters(model).items() if not n.startswith("engram")}
    rows = {n: v for n, v in parameters(memory).items() if "embedding" in n}
    seen: list[int] = []
    found = fit(model, documents(60, 1), advance=seen.append, **SIZES)
    assert found.kept
    assert (found.layer, found.decoder_layer) == (memory.spec.layers[-1], 2)
    assert (found.steps, found.tokens, sum(seen)) == (24, 24 * 128, 24 * 128)
    held = evaluate_losses(model, documents(10, 2), context=32)
    assert held.loss("memory") < held.loss("bare") - 0.4
    assert found.before - found.after > 0.4
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in backbone.items())
    assert all(torch.equal(memory.state_dict()[name], value) for name, value in rows.items())
    assert model.training
    assert not any(p.requires_grad or p.grad is not None for p in memory.parameters())
    assert all(
        p.requires_grad and p.grad is None for n, p in model.named_parameters() if "engram" not in n
    )


def test_equal_inputs_give_equal_weights(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    model = carrying(small_vocab, tmp_path)
    first = fit(model, documents(40, 1), **SIZES)
    save_engram(model, tmp_path / "fitted")
    weights = parameters(model.engram)
    load(model, tmp_path / "bundle")
    model.engram.active = False  # switched off, as it stays
    assert fit(model, documents(40, 1), **SIZES) == first
    assert not model.engram.active
    assert all(torch.equal(v, weights[n]) for n, v in parameters(model.engram).items())
    load(model, tmp_path / "bundle")
    other = fit(model, documents(40, 1), seed=1, **SIZES)
    assert other != first


def test_attach_fits_at_once(
    small_vocab: CompressedVocab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", spec_of(small_vocab, "engram-v1", dim=16))
    model = llama(small_vocab.vocab_size)
    with pytest.raises(InputError, match="are needed"):
        attach(model, bundle, fit=documents(1, 1))
    assert not hasattr(model, "engram")
    monkeypatch.setattr(fitting.fit, "__kwdefaults__", fitting.fit.__kwdefaults__ | SIZES)
    memory = attach(model, bundle, fit=documents(40, 1))
    assert "fitted decoder layer 2: 6." in memory.notes[-1]
    held = evaluate_losses(model, documents(10, 2), context=32)
    assert held.loss("memory") < held.loss("bare") - 0.3


def test_other_models_and_dtypes(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", spec_of(small_vocab, "engram-v1", dim=16))
    for model in (gpt2(small_vocab.vocab_size), llama(small_vocab.vocab_size).bfloat16()):
        for placement in ("hbm", "host"):
            attach(model, bundle, placement=placement)
            found = fit(model, documents(60, 1), **SIZES)
            assert found.kept
            assert found.before - found.after > 0.2
            detach(model)


def test_where_nothing_helps_the_weights_stay(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    model = carrying(small_vocab, tmp_path)
    before = parameters(model.engram)
    generator = np.random.default_rng(0)
    noise = [generator.integers(3, 400, 64) for _ in range(40)]
    found = fit(model, noise, **SIZES)
    assert not found.kept
    assert found.after == found.before
    assert all(torch.equal(v, before[n]) for n, v in parameters(model.engram).items())


def test_what_cannot_be_fitted(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    model = carrying(small_vocab, tmp_path)
    before = parameters(model.engram)
    with pytest.raises(InputError, match="has 3 windows of 32 tokens, and 8 are needed") as caught:
        fit(model, documents(1, 1), **SIZES)
    assert "256 tokens or more" in caught.value.hint
    with pytest.raises(TokenIdError, match="outside"):
        fit(model, [np.full(1000, 5000)], **SIZES)
    assert all(torch.equal(v, before[n]) for n, v in parameters(model.engram).items())
    with pytest.raises(RuntimeAttachError, match="carries no memory"):
        fit(llama(small_vocab.vocab_size), documents(40, 1))
    zero = llama(small_vocab.vocab_size)
    attach(zero, make_bundle(tmp_path / "zero", spec_of(small_vocab, "engram-v1"), zero=True))
    with pytest.raises(RuntimeAttachError, match="say nothing here"):
        fit(zero, documents(40, 1), **SIZES)
    model.engram.layers["2"].value_proj = nn.Sequential(model.engram.layers["2"].value_proj)
    with pytest.raises(RuntimeAttachError, match="has an adapter, or was quantised"):
        fit(model, documents(40, 1), **SIZES)

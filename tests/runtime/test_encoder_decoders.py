"""Memories in the decoder of an encoder-decoder see the decoder's ids, mask and positions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import llama, make_bundle, make_layout, spec_of, text, wake
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from engram_cli.errors import RuntimeAttachError
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab

WIDTH = 16
START = 2
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": {"d_kv": 8, "d_ff": 24, "num_decoder_layers": 2, "num_heads": 2, "dropout_rate": 0.0},
    "bart": {
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "init_std": 0.3,
    },
}


def build(name: str, vocab_size: int, *, encoder_layers: int = 2) -> PreTrainedModel:
    """A tiny encoder-decoder with a decoder of two layers."""
    torch.manual_seed(0)
    count = {"t5": "num_layers", "bart": "encoder_layers"}[name]
    options = {
        **FAMILIES[name],
        count: encoder_layers,
        "vocab_size": vocab_size,
        "d_model": WIDTH,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 2,
        "decoder_start_token_id": START,
    }
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, **options)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = None
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    spec = spec_of(small_vocab, "engram-v1", decoder_layers=(0, 1), hidden_size=WIDTH, num_layers=2)
    return make_bundle(tmp_path_factory.mktemp("bundle") / "engram", spec)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, bundle: Path, small_vocab: CompressedVocab) -> Any:
    found = build(request.param, small_vocab.vocab_size)
    wake(attach(found, bundle))
    return found


def source() -> dict[str, Tensor]:
    """Two source texts of 6 and 3 tokens, padded on the left."""
    ids = text(200, 2, 6)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 2), "attention_mask": mask}


@torch.no_grad()
def full(model: PreTrainedModel, target: Tensor, **options: Any) -> Tensor:
    """The logits of a forward over the whole target, without a cache."""
    return model(**source(), decoder_input_ids=target, use_cache=False, **options).logits


@pytest.mark.parametrize("length", [4, 6, 11])
def test_the_encoders_mask_is_not_the_decoders(model: PreTrainedModel, length: int) -> None:
    target = text(200, 2, length, seed=5)
    rows: list[Tensor] = []
    layer = model.engram.layers["0"]
    layer.register_forward_pre_hook(lambda module, args: rows.append(args[1]))
    found = full(model, target)
    masked = full(model, target, decoder_attention_mask=torch.ones_like(target))
    assert torch.equal(found, masked)
    layout = model.engram.spec.layout
    expected = hash_tokens(layout, target.numpy(), 0)
    assert all(np.array_equal(seen.numpy(), expected) for seen in rows)


def test_the_decoders_own_mask_is_used(model: PreTrainedModel) -> None:
    target = text(200, 2, 7, seed=5)
    mask = torch.ones_like(target)
    mask[0, :2] = 0
    rows: list[Tensor] = []
    layer = model.engram.layers["1"]
    layer.register_forward_pre_hook(lambda module, args: rows.append(args[1]))
    full(model, target, decoder_attention_mask=mask)
    expected = hash_tokens(model.engram.spec.layout, target.numpy(), 1, dead=(mask == 0).numpy())
    assert np.array_equal(rows[0].numpy(), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_beyond_the_source(model: PreTrainedModel, beams: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "num_beams": beams}
    found = model.generate(**source(), **options)
    assert torch.equal(found, model.generate(**source(), use_cache=False, **options))
    if beams == 1:
        grown = torch.full((2, 1), START)
        for _ in range(10):
            grown = torch.cat((grown, full(model, grown)[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(found, grown)


def test_cached_logits_equal_those_of_one_forward(model: PreTrainedModel) -> None:
    out = model.generate(
        **source(),
        max_new_tokens=9,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = full(model, out.sequences[:, :-1])
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-5, rtol=1e-5)


def test_labels_alone_give_the_decoder_its_ids(model: PreTrainedModel) -> None:
    labels = text(200, 2, 8, seed=7)
    shifted = torch.cat((torch.full((2, 1), START), labels[:, :-1]), dim=1)
    with torch.no_grad():
        found = model(**source(), labels=labels).logits
    torch.testing.assert_close(found, full(model, shifted), atol=1e-5, rtol=1e-5)


def test_embeddings_for_the_decoder_are_not_the_encoders_ids(model: PreTrainedModel) -> None:
    embeds = torch.zeros(2, 6, WIDTH)  # as many as the source has ids
    with pytest.raises(RuntimeAttachError, match="without input_ids"):
        model(**source(), decoder_inputs_embeds=embeds)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoders_layers_are_counted(
    name: str, bundle: Path, small_vocab: CompressedVocab
) -> None:
    model = build(name, small_vocab.vocab_size, encoder_layers=3)
    attach(model, bundle)
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    assert any("decoder" in place for place in hooked)
    assert not any("encoder" in place.split(".") for place in hooked)


class Outer(nn.Module):
    """A module whose own ids, positions and lengths are another sequence's than its decoder's."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.config = inner.config
        self.inner = inner

    def forward(
        self,
        input_ids: Tensor,
        target: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        return self.inner(input_ids=target, use_cache=False).logits


@torch.no_grad()
def test_nothing_is_inherited_from_a_module_with_other_ids(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    inner = llama(small_vocab.vocab_size)
    outer = Outer(inner)
    spec = spec_of(small_vocab, "engram-v1", packed=True)
    assert spec.layout.fingerprint == make_layout(small_vocab).fingerprint
    wake(attach(outer, make_bundle(tmp_path / "engram", spec)))
    target, other = text(200, 1, 9), text(200, 1, 9, seed=1)
    expected = outer(other, target)
    found = outer(
        other,
        target,
        attention_mask=(other > 100).long(),
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]]),
        cu_seqlens=torch.tensor([0, 4, 9]),
    )
    assert torch.equal(found, expected)

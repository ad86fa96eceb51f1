"""What cannot be attached, or called with a memory attached, says so and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import HIDDEN, gpt2, llama, logits, make_bundle, make_layout, make_spec, text
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_cli.errors import ArtifactError, InputError, RuntimeAttachError, TokenIdError
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.runtime import attach, detach
from engram_cli.vocab.compress import CompressedVocab


def test_attached_twice(bare: PreTrainedModel, bundle: Path) -> None:
    attach(bare, bundle)
    for model in (bare, bare.base_model):
        with pytest.raises(RuntimeAttachError, match="carries a memory already"):
            attach(model, bundle)
    detach(bare)
    attach(bare.base_model, bundle)
    with pytest.raises(RuntimeAttachError, match="carries a memory already"):
        attach(bare, bundle)
    detach(bare)  # finds it inside
    with pytest.raises(RuntimeAttachError, match="carries no memory"):
        detach(bare)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 48}, f"made for hidden size 48, .* has {HIDDEN}"),
        ({"num_layers": 6}, "made for 6 decoder layers, .* has 4"),
    ],
)
def test_another_models_bundle(
    bare: PreTrainedModel,
    small_vocab: CompressedVocab,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    spec = make_spec(make_layout(small_vocab), **options)
    path = make_bundle(tmp_path / "engram", spec)
    before = set(dict(bare.named_modules()))
    with pytest.raises(RuntimeAttachError, match=message):
        attach(bare, path)
    assert set(dict(bare.named_modules())) == before
    assert not any(m._forward_pre_hooks for m in bare.modules())


def test_embeddings_without_ids(bare: PreTrainedModel, bundle: Path) -> None:
    attach(bare, bundle)
    ids = text(200, 1, 5)
    embeds = bare.get_input_embeddings()(ids).detach()
    with pytest.raises(RuntimeAttachError, match="without input_ids"):
        bare(inputs_embeds=embeds)
    with pytest.raises(RuntimeAttachError, match="without input_ids"):
        bare.generate(inputs_embeds=embeds, max_new_tokens=2)
    logits(bare, ids)  # the failed call left nothing behind
    with pytest.raises(RuntimeAttachError, match="without input_ids"):
        bare(inputs_embeds=embeds)


def test_ids_beyond_the_vocabulary(bare: PreTrainedModel, bundle: Path) -> None:
    attach(bare, bundle)
    for bad in (-1, bare.config.vocab_size):
        with pytest.raises(TokenIdError, match="ids outside 0"):
            logits(bare, torch.tensor([[5, bad]]))


def test_ids_that_pad_the_embedding_are_walls(small_vocab: CompressedVocab, bundle: Path) -> None:
    size = small_vocab.vocab_size
    model = llama(size + 7)
    memory = attach(model, bundle)
    looked_up = []
    for layer in memory.layers.values():
        layer.register_forward_pre_hook(lambda module, args: looked_up.append(args[1]))
    ids = text(200, 1, 6)
    hole = torch.tensor([[False, False, True, False, False, False]])
    logits(model, ids.masked_fill(hole, size + 3))
    layout = make_layout(small_vocab)
    for layer, rows in zip((1, 2), looked_up, strict=True):
        expected = hash_tokens(layout, ids.numpy(), layer, dead=hole.numpy())
        assert np.array_equal(rows.numpy(), expected)


def test_a_layer_run_alone(bare: PreTrainedModel, bundle: Path) -> None:
    attach(bare, bundle)
    layers = bare.model.layers if hasattr(bare, "model") else bare.transformer.h
    with pytest.raises(RuntimeAttachError, match="outside a forward call"):
        layers[1](torch.zeros(1, 3, HIDDEN))


def test_masks_that_cannot_be_read(bare: PreTrainedModel, bundle: Path) -> None:
    attach(bare, bundle)
    ids = text(200, 1, 5)
    with pytest.raises(RuntimeAttachError, match="the attention mask has 3 positions"):
        bare(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(RuntimeAttachError, match="attention mask of type object"):
        bare(ids, attention_mask=object())


def test_no_bundle(bare: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle at"):
        attach(bare, tmp_path / "engram")


def test_verify_reads_every_byte(
    bare: PreTrainedModel, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    path = make_bundle(tmp_path / "engram", make_spec(make_layout(small_vocab)))
    shard = min(path.glob("rows-*"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ArtifactError, match="was changed"):
        attach(bare, path, verify=True)
    attach(bare, path)


def test_weights_that_are_not_loaded(bundle: Path) -> None:
    with torch.device("meta"):
        model = llama(401)
    with pytest.raises(RuntimeAttachError, match="not loaded"):
        attach(model, bundle)


def test_a_name_that_is_taken(bare: PreTrainedModel, bundle: Path) -> None:
    bare.engram = nn.Linear(1, 1)
    with pytest.raises(RuntimeAttachError, match="attribute 'engram' of its own"):
        attach(bare, bundle)


# Finding the layers


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)


class Plain(nn.Module):
    """A decoder of one's own: other names, no config, ids by position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(401, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x


def test_any_module_whose_layers_are_given(bundle: Path) -> None:
    model = Plain()
    with pytest.raises(RuntimeAttachError, match="layers cannot be found") as caught:
        attach(model, bundle)
    assert "layers=" in caught.value.hint
    with pytest.raises(RuntimeAttachError, match="not modules of the model"):
        attach(model, bundle, layers=Plain().blocks)
    ids = text(200, 2, 6)
    before = model(ids)
    memory = attach(model, bundle, layers=model.blocks)
    assert torch.equal(model(ids), before)
    memory.layers["1"].value_proj.weight.data.normal_()
    assert not torch.equal(model(ids), before)
    detach(model)
    assert torch.equal(model(ids), before)


class Wrapped(nn.Module):
    """A multimodal wrapper: a vision tower of as many layers, embeddings made outside."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.config = inner.config
        self.vision_tower = nn.Module()
        self.vision_tower.layers = nn.ModuleList(Block() for _ in range(4))
        self.language_model = inner.base_model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.language_model.get_input_embeddings()(input_ids)
        mask = None if attention_mask is None else attention_mask.bool()
        out = self.language_model(inputs_embeds=inputs_embeds, attention_mask=mask)
        return out.last_hidden_state


def test_ids_are_caught_where_a_wrapper_has_them(bare: PreTrainedModel, bundle: Path) -> None:
    ids = text(200, 2, 6)
    expected = []
    for model in (bare.base_model, Wrapped(bare)):
        memory = attach(model, bundle)
        memory.layers["1"].value_proj.weight.data.fill_(0.1)
        with torch.no_grad():
            out = model(input_ids=ids)
        expected.append(out if isinstance(out, Tensor) else out.last_hidden_state)
        if isinstance(model, Wrapped):
            longer = torch.zeros(2, 9, HIDDEN)
            with pytest.raises(RuntimeAttachError, match="9\\) positions"):
                model(input_ids=ids, inputs_embeds=longer)
            with pytest.raises(RuntimeAttachError, match="without input_ids"):
                model(inputs_embeds=longer)
        detach(model)
    assert torch.equal(*expected)


def test_more_than_one_list_of_layers(bundle: Path, small_vocab: CompressedVocab) -> None:
    model = gpt2(small_vocab.vocab_size)
    model.shadow = nn.ModuleList(Block() for _ in range(4))
    with pytest.raises(RuntimeAttachError, match=r"2 lists \(transformer\.h, shadow\)"):
        attach(model, bundle)
    attach(model, bundle, layers=model.transformer.h)


def test_a_vocabulary_smaller_than_the_tokenizers(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    size = small_vocab.vocab_size
    model = llama(size - 3)
    with pytest.raises(
        RuntimeAttachError, match=f"tokenizer of {size} ids, .* takes {size - 3}"
    ) as e:
        attach(model, bundle)
    assert "own tokenizer" in e.value.hint
    assert "resize_token_embeddings" not in e.value.hint
    assert not hasattr(model, "engram")
    model.resize_token_embeddings(size)
    attach(model, bundle)


def test_a_device_that_there_is_not(bare: PreTrainedModel, bundle: Path) -> None:
    for named in ("cud", "cuda:99", torch.device("xpu:7")):
        with pytest.raises(RuntimeAttachError, match="rows_device='") as caught:
            attach(bare, bundle, rows_device=named)
        assert "cpu" in caught.value.hint
    assert not hasattr(bare, "engram")
    attach(bare, bundle, rows_device="cpu")

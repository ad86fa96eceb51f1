"""trace: the gates and strengths are those of the forward call, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import MODULES, llama, logits, make_bundle, parameters, spec_of, text, wake
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engram_cli.errors import InputError, MismatchError, RuntimeAttachError
from engram_cli.runtime import attach, detach, trace
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("module", MODULES)
def test_gates_are_those_of_the_forward(
    module: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size).train()
    memory = attach(model, make_bundle(tmp_path / "engram", spec_of(small_vocab, module)))
    fresh = trace(model, text(200, 1, 9))
    assert all(not strength.any() for strength in fresh.strengths.values())
    assert fresh.untrained == memory.spec.layers
    wake(memory)
    weights = parameters(model)
    seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    handles = [
        memory.layers[str(layer)].register_forward_hook(
            lambda module, args, out, layer=layer: seen.update({layer: (*args[:2], out[0])})
        )
        for layer in memory.spec.layers
    ]
    ids = text(200, 1, 9)
    found = trace(model, ids)
    for handle in handles:
        handle.remove()
    assert found.ids == tuple(ids[0].tolist())
    assert found.untrained == ()
    assert tuple(found.gates) == memory.spec.layers
    assert tuple(found.decoder_layers.values()) == memory.spec.decoder_layers == (1, 2)
    for layer, (hidden, rows, summed) in seen.items():
        own = memory.layers[str(layer)]
        with torch.no_grad():
            gates = own.gates(hidden[:, :, None], own.vectors(rows))
        assert torch.equal(found.gates[layer], gates[0, :, :, 0])
        strength = (summed - hidden)[0].norm(dim=-1) / hidden[0].norm(dim=-1)
        torch.testing.assert_close(found.strengths[layer], strength, atol=1e-5, rtol=1e-4)
    assert found.gates[memory.spec.layers[0]].std() > 0.05
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in memory.layers.values())


def test_a_text_and_its_tokenizer(
    small_vocab: CompressedVocab, bundle: Path, tokenizer_file: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    said = "Only Alexander the Great"
    plain = Tokenizer.from_file(str(tokenizer_file))
    ids = plain.encode(said).ids
    for tokenizer in (plain, PreTrainedTokenizerFast(tokenizer_object=plain)):
        found = trace(model, said, tokenizer=tokenizer)
        assert found.ids == tuple(ids)
        assert torch.equal(found.gates[1], trace(model, torch.tensor(ids)).gates[1])
    before = logits(model, torch.tensor([ids]))
    with pytest.raises(InputError, match="needs a tokenizer"):
        trace(model, said)
    with pytest.raises(InputError, match="no tokens"):
        trace(model, "", tokenizer=plain)
    larger = Tokenizer.from_file(str(tokenizer_file))
    larger.add_tokens(["Zebra"])
    with pytest.raises(MismatchError, match="the tokenizer gives id"):
        trace(model, "a Zebra", tokenizer=larger)
    assert torch.equal(logits(model, torch.tensor([ids])), before)
    detach(model)
    with pytest.raises(RuntimeAttachError, match="carries no memory"):
        trace(model, torch.tensor(ids))


def test_one_untrained_layer(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = llama(small_vocab.vocab_size)
    memory = attach(model, bundle)
    wake(memory)
    with torch.no_grad():
        for weight in memory.layers["2"].value_proj.parameters():
            weight.zero_()
    assert trace(model, text(200, 1, 9)).untrained == (2,)

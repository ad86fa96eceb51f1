"""Several memories on one model: by name, on and off, each taken out alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import logits, make_bundle, spec_of, text, wake, with_cache
from transformers import DynamicCache, PreTrainedModel

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import activate, attach, deactivate, detach, memories, save_engram
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture
def other(small_vocab: CompressedVocab, tmp_path: Path) -> Path:
    """A bundle of another module for layers 2 and 3."""
    spec = spec_of(small_vocab, "deepseek-v4.1", decoder_layers=(2, 3))
    return make_bundle(tmp_path / "other", spec)


def test_memories_add_up_and_leave_alone(bare: PreTrainedModel, bundle: Path, other: Path) -> None:
    ids = text(200, 2, 10)
    nothing = logits(bare, ids)
    first = attach(bare, bundle)
    wake(first)
    alone = logits(bare, ids)
    second = attach(bare, other, name="code")
    assert torch.equal(logits(bare, ids), alone), "a fresh one adds nothing"
    wake(second)
    both = logits(bare, ids)
    assert not torch.equal(both, alone)
    assert (bare.engram, bare.engram_code) == (first, second)
    assert memories(bare) == {"engram": first, "code": second}

    deactivate(bare, "code")
    assert torch.equal(logits(bare, ids), alone)
    deactivate(bare)
    assert torch.equal(logits(bare, ids), nothing)
    activate(bare)
    assert torch.equal(logits(bare, ids), both)

    detach(bare, "engram")
    assert not torch.equal(logits(bare, ids), both)
    detach(bare, "code")
    wake(attach(bare, bundle))
    wake(attach(bare, other, name="code"))
    assert torch.equal(logits(bare, ids), both)
    detach(bare)
    assert torch.equal(logits(bare, ids), nothing)
    assert not any(module._forward_pre_hooks for module in bare.modules())


def test_both_decode_exactly(bare: PreTrainedModel, bundle: Path, other: Path) -> None:
    wake(attach(bare, bundle))
    wake(attach(bare, other, name="code"))
    ids = text(200, 2, 12)
    cache = DynamicCache(config=bare.config)
    with torch.no_grad():
        found = [
            bare(piece, **with_cache(cache), use_cache=True).logits
            for piece in ids.split([5, 1, 1, 4, 1], dim=1)
        ]
    torch.testing.assert_close(torch.cat(found, 1), logits(bare, ids), atol=1e-5, rtol=1e-5)
    cache.crop(-4)
    deactivate(bare, "code")
    with torch.no_grad():
        bare(ids[:, 8:9], **with_cache(cache), use_cache=True)
    activate(bare, "code")
    with pytest.raises(RuntimeAttachError, match="holds 9 tokens, of which the memory has seen 8"):
        bare(ids[:, 9:10], **with_cache(cache), use_cache=True)


def test_names_that_are_wrong(bare: PreTrainedModel, bundle: Path, tmp_path: Path) -> None:
    attach(bare, bundle)
    attach(bare, bundle, name="twin")
    for name in ("engram", "twin"):
        with pytest.raises(RuntimeAttachError, match="carries a memory already"):
            attach(bare, bundle, name=name)
    for name in ("", "Code", "a.b", "1st", "x" * 50):
        with pytest.raises(RuntimeAttachError, match="cannot be called"):
            attach(bare, bundle, name=name)
    with pytest.raises(RuntimeAttachError, match="no memory 'code'") as caught:
        deactivate(bare, "code")
    assert "engram, twin" in caught.value.hint
    with pytest.raises(RuntimeAttachError, match="which of its memories is meant"):
        save_engram(bare, tmp_path / "engram")
    detach(bare)
    for act in (activate, deactivate, detach):
        with pytest.raises(RuntimeAttachError, match="carries no memory"):
            act(bare)

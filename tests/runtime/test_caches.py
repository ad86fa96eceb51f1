"""A past is found whatever its argument is called, carries the memory's state, or is refused."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from runtime.test_decoding import close, in_pieces
from tiny_models import (
    HIDDEN,
    cache_in,
    llama,
    logits,
    make_bundle,
    spec_of,
    text,
    wake,
    with_cache,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach, detach
from engram_cli.vocab.compress import CompressedVocab

VOCAB = 200


class Block(nn.Module):
    """A layer that looks at no other position, so that only the memory needs a past."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        return hidden + torch.tanh(self.mix(hidden))


class Notes:
    """A cache of another library: it counts nothing, and has only these methods."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def update(self, hidden: Tensor) -> None:
        self.sums = [hidden.sum(1)]

    def reset(self) -> None:
        self.sums = []


class Own(nn.Module):
    """A decoder of one's own, whose past is called neither cache nor past_key_values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(401, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(
        self,
        tokens: Tensor,
        notes: Any = None,
        carry: Any = None,
        position: Tensor | None = None,
        in_place: bool = False,
    ) -> dict[str, Any]:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        if notes is not None:
            notes.update(hidden)
        if in_place and carry is not None:
            carry["sums"][0] += hidden.sum(1)
        else:
            carry = {"sums": [hidden.sum(1)]}
        return {"hidden": hidden, "carry": carry}


@pytest.fixture
def own(bundle: Path) -> Own:
    model = Own()
    wake(attach(model, bundle, layers=model.blocks))
    return model.requires_grad_(False)


def test_a_cache_that_counts_nothing(own: Own) -> None:
    ids = text(VOCAB, 2, 9)
    expected = own(ids)["hidden"]
    notes = Notes()
    for _ in range(2):
        found = [own(piece, notes=notes)["hidden"] for piece in ids.split([4, 1, 4], dim=1)]
        close(torch.cat(found, 1), expected)
        notes.reset()
    other = Notes()
    other.update(expected)
    with pytest.raises(RuntimeAttachError, match=r"cache \(Notes\) holds tokens that the memory"):
        own(ids, notes=other)


class Bound:
    """A cache that takes no attributes."""

    __slots__ = ()

    def update(self, hidden: Tensor) -> None: ...


def test_a_cache_that_takes_no_attributes_is_refused(own: Own) -> None:
    with pytest.raises(RuntimeAttachError, match="type Bound takes no attributes"):
        own(text(VOCAB, 2, 4), notes=Bound())


class Hidden(Own):
    """A decoder that gives its layers positions, and keeps its past to itself."""

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden, position_ids=torch.arange(tokens.shape[1]) + start)
        return hidden


@torch.no_grad()
def test_positions_that_only_the_layers_are_given(bundle: Path) -> None:
    model = Hidden()
    attach(model, bundle, layers=model.blocks)
    model(text(VOCAB, 2, 4))
    with pytest.raises(RuntimeAttachError, match="begin at position 4"):
        model(text(VOCAB, 2, 1), start=4)


@pytest.mark.parametrize("in_place", [False, True])
def test_tensors_that_are_handed_back(own: Own, in_place: bool) -> None:
    ids, other = text(VOCAB, 2, 9), text(VOCAB, 2, 9, seed=1)
    start = own(ids[:, :4])["carry"]
    branches = [ids] if in_place else [ids, torch.cat((ids[:, :4], other[:, 4:]), dim=1)]
    for whole in branches:
        carry = start
        for begin in range(4, 9):
            out = own(whole[:, begin : begin + 1], carry=carry, in_place=in_place)
            close(out["hidden"], own(whole)["hidden"][:, begin : begin + 1])
            carry = out["carry"]


def test_tensors_of_an_unknown_past_are_refused(own: Own) -> None:
    ids = text(VOCAB, 2, 4)
    with pytest.raises(RuntimeAttachError, match=r"given a state \(carry\)"):
        own(ids, carry={"sums": [torch.ones(2, HIDDEN)]})


def test_positions_that_tell_of_a_past(own: Own, awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 1)
    for model, given in ((own, "position"), (awake, "position_ids")):
        for places in (torch.full((2, 1), 8), torch.tensor([[0], [8]])):
            with pytest.raises(RuntimeAttachError, match="begin at position 8") as caught:
                model(ids, **{given: places})
            assert "cache" in caught.value.hint
        model(ids, **{given: torch.zeros(2, 1, dtype=torch.int64)})


def test_positions_may_count_padding(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 9)
    mask = (torch.arange(9) >= 4).long()[None]
    for places in (torch.arange(9)[None], (mask.cumsum(1) - 1).clamp_min(0)):
        logits(awake, ids, attention_mask=mask, position_ids=places)
        with pytest.raises(RuntimeAttachError, match="begin at position"):
            logits(awake, ids, attention_mask=mask, position_ids=places + 5)


def test_a_mask_that_tells_of_a_past(awake: PreTrainedModel) -> None:
    with pytest.raises(RuntimeAttachError, match="mask has 9 positions, input_ids 1"):
        awake(text(VOCAB, 1, 1), attention_mask=torch.ones(1, 9), use_cache=False)


def test_two_caches_are_one_too_many(own: Own) -> None:
    with pytest.raises(RuntimeAttachError, match=r"2 caches \(Notes, Notes\)"):
        own(text(VOCAB, 1, 3), notes=Notes(), carry=Notes())


def test_a_cache_is_no_other_memorys(
    bare: PreTrainedModel, bundle: Path, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    ids = text(VOCAB, 2, 8)
    wake(attach(bare, bundle))
    _, cache = in_pieces(bare, ids, [8])
    detach(bare)
    attach(bare, make_bundle(tmp_path / "engram", spec_of(small_vocab, "deepseek-v4.1")))
    with pytest.raises(RuntimeAttachError, match="holds 8 tokens, of which the memory has seen 0"):
        in_pieces(bare, ids[:, :1], [1], cache)


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_a_cache_is_copied_with_its_state(awake: PreTrainedModel, way: str) -> None:
    ids = text(VOCAB, 2, 14)
    _, cache = in_pieces(awake, ids[:, :8], [6, 1, 1])
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(cache))
    elif way == "deepcopy":
        twin = copy.deepcopy(cache)
    else:
        held = io.BytesIO()
        torch.save(cache, held)
        held.seek(0)
        twin = torch.load(held, weights_only=False)
    expected = logits(awake, ids)
    twin.batch_repeat_interleave(2)
    twin.crop(-2)
    found, _ = in_pieces(awake, ids[:, 6:].repeat_interleave(2, 0), [1, 7], twin)
    close(found, expected[:, 6:].repeat_interleave(2, 0))
    found, _ = in_pieces(awake, ids[:, 8:], [1, 5], cache)
    close(found, expected[:, 8:])


def test_transformers_warns_of_nothing(
    awake: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    transformers.utils.logging.warning_once.cache_clear()
    ids = text(VOCAB, 1, 6)
    with torch.no_grad():
        first = awake(ids, use_cache=True)
        awake(ids[:, :1], **with_cache(cache_in(first)))
        awake(ids, use_cache=False)
    assert "deprecated" not in caplog.text


@pytest.mark.parametrize("exit_after", [1, 2, 3])
def test_an_early_exit_drafts(bundle: Path, small_vocab: CompressedVocab, exit_after: int) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))  # in layers 1 and 2
    ids = text(VOCAB, 2, 9)
    model.config.num_hidden_layers = exit_after
    cache = DynamicCache(config=model.config)
    found, _ = in_pieces(model, ids, [4, 1, 4], cache)
    close(found, logits(model, ids, use_cache=False))
    model.config.num_hidden_layers = 4
    cache.layers.extend(DynamicCache(config=model.config).layers[exit_after:])
    if exit_after == 3:  # both layers with a memory ran
        in_pieces(model, ids[:, :1], [1], cache)
        return
    with pytest.raises(RuntimeAttachError, match="did not run for all of the 9 tokens") as caught:
        in_pieces(model, ids[:, :1], [1], cache)
    assert "skipped" in caught.value.hint


def test_early_exits_are_drafts_of_generate(bundle: Path, small_vocab: CompressedVocab) -> None:
    if transformers.__version__.startswith("5.0."):
        pytest.skip("assistant_early_exit raises a TypeError in this release of transformers")
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    ids = torch.cat([text(VOCAB, 1, 4)] * 3, dim=1)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 10**6}
    found = model.generate(ids, assistant_early_exit=2, **options)
    assert torch.equal(found, model.generate(ids, use_cache=False, **options))


class Paged:
    """What a paged cache of continuous batching can do."""

    def update(self, *args: Any) -> None: ...

    def free_blocks(self, request: str) -> None: ...


def test_continuous_batching_is_refused(own: Own) -> None:
    with pytest.raises(RuntimeAttachError, match="continuous batching") as caught:
        own(text(VOCAB, 1, 7), notes=Paged())
    assert "model.generate" in caught.value.hint


def test_a_paged_cache_of_transformers_is_one(awake: PreTrainedModel) -> None:
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    with pytest.raises(RuntimeAttachError, match="continuous batching"):
        awake(text(VOCAB, 1, 7), **with_cache(object.__new__(PagedAttentionCache)))


def test_layers_that_carry_predictions_are_refused(
    bundle: Path, small_vocab: CompressedVocab
) -> None:
    config = AutoConfig.for_model(
        "gemma3n_text",
        vocab_size=small_vocab.vocab_size,
        vocab_size_per_layer_input=small_vocab.vocab_size,
        hidden_size=HIDDEN,
        hidden_size_per_layer_input=4,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(RuntimeAttachError, match="carry 2 predictions of each hidden state"):
        attach(model, bundle)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_prefetch_takes_the_cache_by_any_name(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    model = llama(small_vocab.vocab_size)
    path = make_bundle(tmp_path / "engram", spec_of(small_vocab, "engram-v1"))
    memory = attach(model, path, placement="host")
    ids = text(VOCAB, 1, 8)
    for name in ("cache", "past_key_values", "cache_params"):
        _, cache = in_pieces(model, ids[:, :7], [7])
        memory.prefetch(ids[:, 7:], **{name: cache})
        used = memory.counters.ahead_used
        in_pieces(model, ids[:, 7:], [1], cache)
        assert memory.counters.ahead_used == used + 1
    detach(model)


@pytest.mark.parametrize("static", [False, True])
def test_padding_at_the_end_is_not_continued(awake: PreTrainedModel, static: bool) -> None:
    """Hashed from the padding on, the next tokens would silently lose those before it."""
    ids, mask = text(VOCAB, 2, 12), torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    cache: Any = DynamicCache(config=awake.config)
    if static:
        cache = transformers.StaticCache(config=awake.config, max_cache_len=16)
    with torch.no_grad():
        awake(ids[:, :7], **with_cache(cache), attention_mask=mask)
        longer = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
        with pytest.raises(RuntimeAttachError, match="end in padding"):
            awake(ids[:, 7:8], **with_cache(cache), attention_mask=longer)

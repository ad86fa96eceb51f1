"""Decoding with a cache gives what one forward over the whole sequence gives."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime.modes import NEVER, chunked_prefill
from tiny_models import FAMILIES, cache_in, logits, text, wake, with_cache
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach, detach
from engram_cli.runtime.recent import KEEP
from engram_cli.vocab.compress import CompressedVocab

VOCAB = 200


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def in_pieces(
    model: PreTrainedModel, ids: Tensor, sizes: list[int], cache: Any = None, **options: Any
) -> tuple[Tensor, Any]:
    """The logits of `ids` fed in pieces, and the cache."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    mask = options.pop("attention_mask", None)
    found = []
    done = 0 if mask is None else mask.shape[1] - ids.shape[1]
    with torch.no_grad():
        for piece in ids.split(sizes, dim=1):
            done += piece.shape[1]
            extra = {} if mask is None else {"attention_mask": mask[:, :done]}
            if "position_ids" in options:
                extra["position_ids"] = options["position_ids"][:, done - piece.shape[1] : done]
            out = model(piece, **with_cache(cache), use_cache=True, **extra)
            found.append(out.logits)
    return torch.cat(found, dim=1), cache


def greedy(model: PreTrainedModel, ids: Tensor, count: int, **options: Any) -> Tensor:
    """What generate adds to `ids`."""
    out = model.generate(ids, max_new_tokens=count, do_sample=False, **options)
    return out[:, ids.shape[1] :]


def greedy_by_hand(model: PreTrainedModel, ids: Tensor, count: int) -> Tensor:
    """The same from one full forward a token, without any cache."""
    grown = ids
    for _ in range(count):
        next_id = logits(model, grown, use_cache=False)[:, -1:].argmax(-1)
        grown = torch.cat((grown, next_id), dim=1)
    return grown[:, ids.shape[1] :]


def test_the_memory_matters_here(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 20)
    with_memory = logits(awake, ids)
    for layer in awake.engram.layers.values():
        torch.nn.init.zeros_(layer.short_conv.conv.weight)
    without_conv = logits(awake, ids)
    detach(awake)
    assert (with_memory - without_conv).abs().max() > 0.1
    assert (with_memory - logits(awake, ids)).abs().max() > 0.1


@pytest.mark.parametrize(
    "sizes",
    [[1] * 24, [12] + [1] * 12, [5, 1, 9, 3, 6], [1, 23], [23, 1], [2] * 12],
    ids=["one by one", "prefill", "chunks", "one-token prompt", "last", "pairs"],
)
def test_pieces_equal_the_whole(awake: PreTrainedModel, sizes: list[int]) -> None:
    ids = text(VOCAB, 2, 24)
    found, _ = in_pieces(awake, ids, sizes)
    close(found, logits(awake, ids, use_cache=False))


def test_a_long_prompt_and_many_steps(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 2 * KEEP + 60)
    found, _ = in_pieces(awake, ids, [KEEP + 40, *[1] * (KEEP + 20)])
    close(found, logits(awake, ids))


def test_a_cache_made_by_the_model(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 10)
    with torch.no_grad():
        first = awake(ids[:, :6], use_cache=True)
        second = awake(ids[:, 6:], **with_cache(cache_in(first)))
    close(torch.cat((first.logits, second.logits), dim=1), logits(awake, ids))


def test_greedy(awake: PreTrainedModel) -> None:
    for length in (1, 2, 9):
        ids = text(VOCAB, 2, length)
        assert torch.equal(greedy(awake, ids, 12), greedy_by_hand(awake, ids, 12))


def test_chunked_prefill(awake: PreTrainedModel) -> None:
    chunked_prefill(awake)


def test_sampling_with_a_seed(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 5)
    found = []
    for cached in (True, False):
        torch.manual_seed(3)
        found.append(awake.generate(ids, max_new_tokens=10, do_sample=True, use_cache=cached))
    assert torch.equal(*found)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beam_search(awake: PreTrainedModel, options: dict[str, Any]) -> None:
    ids = text(VOCAB, 2, 6)
    found = [
        awake.generate(ids, max_new_tokens=10, do_sample=False, use_cache=cached, **options)
        for cached in (True, False)
    ]
    assert torch.equal(*found)
    moved = awake.generate(ids, max_new_tokens=10, do_sample=False)
    assert not torch.equal(found[0][:: len(found[0]) // 2], moved), "the beams never moved"


def test_left_padding(awake: PreTrainedModel) -> None:
    pad = awake.config.pad_token_id
    short, long = text(VOCAB, 1, 4, seed=1), text(VOCAB, 1, 9, seed=2)
    batch = torch.cat((torch.cat((torch.full((1, 5), pad), short), dim=1), long))
    mask = (torch.arange(9) >= torch.tensor([[5], [0]])).long()
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        found = awake(batch, attention_mask=mask, position_ids=places).logits
    close(found[:1, 5:], logits(awake, short))
    close(found[1:], logits(awake, long))
    pieces, _ = in_pieces(awake, batch, [3, 4, 1, 1], attention_mask=mask, position_ids=places)
    close(pieces[:1, 5:], logits(awake, short))
    close(pieces[1:], logits(awake, long))

    generated = greedy(awake, batch, 8, attention_mask=mask)
    assert torch.equal(generated[:1], greedy_by_hand(awake, short, 8))
    assert torch.equal(generated[1:], greedy_by_hand(awake, long, 8))


def test_beam_search_with_left_padding(awake: PreTrainedModel) -> None:
    pad = awake.config.pad_token_id
    batch = torch.cat((torch.full((2, 3), pad), text(VOCAB, 2, 4)), dim=1)
    batch[1, :3] = torch.tensor([7, 8, 9])
    mask = (batch != pad).long()
    found = [
        awake.generate(
            batch, attention_mask=mask, max_new_tokens=8, num_beams=3, do_sample=False,
            use_cache=cached,
        )
        for cached in (True, False)
    ]  # fmt: skip
    assert torch.equal(*found)


def test_right_padding_leaves_the_tokens_alone(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 9)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    padded = ids.masked_fill(mask == 0, 2)
    found = logits(awake, padded, attention_mask=mask)
    close(found[:1, :5], logits(awake, ids[:1, :5]))
    close(found[1:], logits(awake, ids[1:]))


@pytest.mark.parametrize("padding", [0, 3])
def test_a_static_cache(awake: PreTrainedModel, padding: int) -> None:
    ids = text(VOCAB, 2, 7)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    found = greedy(awake, ids, 6, attention_mask=mask, cache_implementation="static")
    assert torch.equal(found, greedy(awake, ids, 6, attention_mask=mask))
    for line in range(2):
        begin = padding if line == 0 else 0
        assert torch.equal(
            found[line : line + 1], greedy_by_hand(awake, ids[line : line + 1, begin:], 6)
        )


def test_a_static_cache_is_reset(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 8)
    cache = StaticCache(config=awake.config, max_cache_len=16)
    for _ in range(2):
        found, _ = in_pieces(awake, ids, [5, 1, 2], cache)
        close(found, logits(awake, ids))
        cache.reset()


def test_two_generations_interleaved(awake: PreTrainedModel) -> None:
    one, two = text(VOCAB, 1, 12, seed=1), text(VOCAB, 3, 12, seed=2)
    caches: list[Any] = [DynamicCache(config=awake.config), DynamicCache(config=awake.config)]
    found: list[list[Tensor]] = [[], []]
    for step in range(6):
        for which, ids in enumerate((one, two)):
            piece = ids[:, 2 * step : 2 * step + 2]
            found[which].append(in_pieces(awake, piece, [1, 1], caches[which])[0])
    close(torch.cat(found[0], dim=1), logits(awake, one))
    close(torch.cat(found[1], dim=1), logits(awake, two))


def test_two_threads(awake: PreTrainedModel) -> None:
    expected = {seed: logits(awake, text(VOCAB, 1, 20, seed)) for seed in range(4)}
    worst = {}

    def run(seed: int) -> None:
        found, _ = in_pieces(awake, text(VOCAB, 1, 20, seed), [1] * 20)
        worst[seed] = (found - expected[seed]).abs().max()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst.values()) < 1e-5
    assert len(worst) == 4


def test_sequences_repeated_selected_and_reordered(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 14)
    _, cache = in_pieces(awake, ids[:, :8], [6, 1, 1])
    cache.batch_repeat_interleave(2)
    repeated = ids.repeat_interleave(2, dim=0)
    repeated[:, 8:] = text(VOCAB, 4, 6, seed=9)
    found, _ = in_pieces(awake, repeated[:, 8:10], [1, 1], cache)
    close(found, logits(awake, repeated)[:, 8:10])

    order = torch.tensor([3, 0, 0, 1])
    cache.reorder_cache(order)
    moved = repeated[order]
    found, _ = in_pieces(awake, moved[:, 10:12], [2], cache)
    close(found, logits(awake, moved)[:, 10:12])

    cache.batch_select_indices(torch.tensor([2, 0]))
    chosen = moved[[2, 0]]
    found, _ = in_pieces(awake, chosen[:, 12:], [1, 1], cache)
    close(found, logits(awake, chosen)[:, 12:])


def test_crop_and_go_on_another_way(awake: PreTrainedModel) -> None:
    ids, other = text(VOCAB, 2, 20, seed=1), text(VOCAB, 2, 20, seed=2)
    for sizes in ([20], [10, *[1] * 10], [1] * 20):
        for kept in (19, 12, 3, 1):
            _, cache = in_pieces(awake, ids, sizes)
            cache.crop(-(20 - kept))
            branch = torch.cat((ids[:, :kept], other[:, kept:]), dim=1)
            found, _ = in_pieces(
                awake, branch[:, kept:], [1, 19 - kept] if kept < 19 else [1], cache
            )
            close(found, logits(awake, branch)[:, kept:])


def test_crop_to_nothing_is_a_fresh_start(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 90)
    _, cache = in_pieces(awake, ids, [90])
    cache.crop(-90)
    found, _ = in_pieces(awake, ids[:, 5:12], [3, 4], cache)
    close(found, logits(awake, ids[:, 5:12]))


def test_crop_beyond_what_is_kept_says_so(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, KEEP + 40)
    _, cache = in_pieces(awake, ids, [KEEP + 40])
    cache.crop(-KEEP)
    found, _ = in_pieces(awake, ids[:, 40:44], [4], cache)
    close(found, logits(awake, ids[:, :44])[:, 40:])
    _, cache = in_pieces(awake, ids, [KEEP + 40])
    with pytest.raises(RuntimeAttachError, match=f"cropped by {KEEP + 1} tokens"):
        cache.crop(-(KEEP + 1))
    with pytest.raises(RuntimeAttachError, match="of which the memory has seen"):
        in_pieces(awake, ids[:, :1], [1], cache)


@pytest.mark.parametrize("assistant", ["lookup", "model"])
def test_assisted_decoding(
    awake: PreTrainedModel, assistant: str, bundle: Path, small_vocab: CompressedVocab
) -> None:
    ids = torch.cat([text(VOCAB, 1, 6)] * 3, dim=1)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if assistant == "model":
        draft = FAMILIES["llama"](small_vocab.vocab_size)
        wake(attach(draft, bundle))
        draft.generation_config.num_assistant_tokens = 5
        options = {"assistant_model": draft}
    found = greedy(awake, ids, 20, eos_token_id=NEVER, **options)
    assert torch.equal(found, greedy_by_hand(awake, ids, 20))


def test_a_conversation_reuses_its_cache(awake: PreTrainedModel) -> None:
    cache = DynamicCache(config=awake.config)
    ids = text(VOCAB, 1, 6)
    for turn in range(3):
        expected = greedy_by_hand(awake, ids, 5)
        ids = awake.generate(ids, **with_cache(cache), max_new_tokens=5, do_sample=False)
        assert torch.equal(ids[:, -5:], expected)
        ids = torch.cat((ids, text(VOCAB, 1, 4, seed=turn)), dim=1)


def test_a_copied_cache_goes_its_own_way(awake: PreTrainedModel) -> None:
    ids, other = text(VOCAB, 1, 14, seed=1), text(VOCAB, 1, 14, seed=2)
    _, cache = in_pieces(awake, ids[:, :8], [8])
    branch = torch.cat((ids[:, :8], other[:, 8:]), dim=1)
    twin = copy.deepcopy(cache)
    twin.batch_repeat_interleave(2)
    found, _ = in_pieces(awake, branch[:, 8:].repeat(2, 1), [1, 5], twin)
    close(found, logits(awake, branch.repeat(2, 1))[:, 8:])
    found, _ = in_pieces(awake, ids[:, 8:], [1, 5], cache)
    close(found, logits(awake, ids)[:, 8:])


def test_a_shallow_copy_of_a_cache(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 2, 12)
    _, cache = in_pieces(awake, ids[:, :6], [6])
    twin = copy.copy(cache)
    del cache
    with pytest.raises(RuntimeAttachError, match="shallow copy of a cache that is gone"):
        twin.reorder_cache(torch.tensor([1, 0]))
    in_pieces(awake, ids[:, 6:8], [2], twin)  # which makes it the state's own cache
    twin.reorder_cache(torch.tensor([1, 0]))
    found, _ = in_pieces(awake, ids[:, 8:].flip(0), [1, 3], twin)
    close(found, logits(awake, ids.flip(0))[:, 8:])


def test_dropping_a_cache_frees_it_at_once(awake: PreTrainedModel) -> None:
    _, cache = in_pieces(awake, text(VOCAB, 1, 8), [4, 4])
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_a_cache_the_memory_has_not_seen_is_refused(bare: PreTrainedModel, bundle: Path) -> None:
    ids = text(VOCAB, 2, 8)
    _, cache = in_pieces(bare, ids, [8])
    wake(attach(bare, bundle))
    with pytest.raises(RuntimeAttachError, match="holds 8 tokens, of which the memory has seen 0"):
        in_pieces(bare, ids[:, :1], [1], cache)
    _, cache = in_pieces(bare, ids, [8])
    for layer in cache.layers:
        layer.crop(-2)  # behind the cache's back
    with pytest.raises(RuntimeAttachError, match="holds 6 tokens, of which the memory has seen 8"):
        in_pieces(bare, ids[:, :1], [1], cache)
    _, cache = in_pieces(bare, ids, [8])
    with pytest.raises(RuntimeAttachError, match="holds 2 sequences, input_ids has 1"):
        in_pieces(bare, ids[:1, :1], [1], cache)


def test_a_past_of_tuples_is_refused(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 3)
    past = ((torch.zeros(1), torch.zeros(1)),)
    with pytest.raises(RuntimeAttachError, match="the past is a tuple"):
        awake(ids, **with_cache(past))


def test_a_failed_call_leaves_no_state(awake: PreTrainedModel) -> None:
    ids = text(VOCAB, 1, 8)
    _, cache = in_pieces(awake, ids[:, :4], [4])
    layer = awake.engram.layers["2"]
    original = layer.forward
    layer.forward = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        in_pieces(awake, ids[:, 4:5], [1], cache)
    layer.forward = original
    with pytest.raises(RuntimeAttachError):  # some layers' keys and values went in
        in_pieces(awake, ids[:, 4:5], [1], cache)
    close(in_pieces(awake, ids, [4, 4])[0], logits(awake, ids))

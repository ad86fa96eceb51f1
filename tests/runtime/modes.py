"""The ways to run a model that the test matrix goes through; each compares with a plain forward.

A mode takes a model that carries a memory and raises AssertionError where cache, padding or batch
change what one full forward over each sequence alone gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import logits, text, with_cache
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

VOCAB = 200
NEW = 5
NEVER = 10**6  # an end of sequence that no vocabulary has; releases below 5.9 or so need one

Mode = Callable[[PreTrainedModel], None]


def close(found: Tensor, expected: Tensor) -> None:
    """Equal within what float32 leaves."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def fed(model: PreTrainedModel, pieces: list[Tensor], cache: Any) -> Tensor:
    """The logits of pieces [B, t] fed one after another with a cache."""
    with torch.no_grad():
        found = [model(p, **with_cache(cache), use_cache=True).logits for p in pieces]
    return torch.cat(found, dim=1)


def generated(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """What generate adds to `ids`, greedily unless `options` say otherwise."""
    chosen: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, **options}
    return model.generate(ids, **chosen)[:, ids.shape[1] :]


def by_hand(model: PreTrainedModel, ids: Tensor, count: int = NEW) -> Tensor:
    """Greedy tokens from one full forward a token, without any cache."""
    grown = ids
    for _ in range(count):
        next_id = logits(model, grown, use_cache=False)[:, -1:].argmax(-1)
        grown = torch.cat((grown, next_id), dim=1)
    return grown[:, ids.shape[1] :]


def padded_left(short: Tensor, long: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Two prompts [1, t] as a batch, and its mask."""
    missing = long.shape[1] - short.shape[1]
    batch = torch.cat((torch.nn.functional.pad(short, (missing, 0), value=pad), long))
    mask = torch.ones_like(batch)
    mask[0, :missing] = 0
    return batch, mask


def logits_in_pieces(model: PreTrainedModel) -> None:
    """A prompt, then single tokens, then several tokens give the logits of one forward pass."""
    ids = text(VOCAB, 2, 14)
    found = fed(model, list(ids.split([6, 1, 1, 1, 5], dim=1)), DynamicCache(config=model.config))
    close(found, logits(model, ids, use_cache=False))


def greedy(model: PreTrainedModel) -> None:
    """The greedy tokens of generate equal those of full forward passes."""
    ids = text(VOCAB, 2, 7)
    assert torch.equal(generated(model, ids), by_hand(model, ids))


def one_token_prompt(model: PreTrainedModel) -> None:
    """The same, starting from a prompt of one token."""
    ids = text(VOCAB, 2, 1, seed=4)
    assert torch.equal(generated(model, ids), by_hand(model, ids))


def sampling(model: PreTrainedModel) -> None:
    """The same seed samples the same tokens with a cache and without."""
    found = []
    for cached in (True, False):
        torch.manual_seed(3)
        found.append(generated(model, text(VOCAB, 2, 5), do_sample=True, use_cache=cached))
    assert torch.equal(*found)


def beam_search(model: PreTrainedModel) -> None:
    """When beams move between sequences, their memory moves with them."""
    ids = text(VOCAB, 2, 5)
    found = [generated(model, ids, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*found)


def left_padding(model: PreTrainedModel) -> None:
    """Two prompts of different lengths in a batch continue as each would alone."""
    short, long = text(VOCAB, 1, 3, seed=1), text(VOCAB, 1, 8, seed=2)
    batch, mask = padded_left(short, long, 2)
    found = generated(model, batch, attention_mask=mask)
    assert torch.equal(found, torch.cat((by_hand(model, short), by_hand(model, long))))


def right_padding(model: PreTrainedModel) -> None:
    """In training, logits and the rows' gradients equal those of each sequence alone."""
    long, short = text(VOCAB, 1, 9, seed=1), text(VOCAB, 1, 5, seed=2)
    batch = torch.cat((long, torch.nn.functional.pad(short, (0, 4), value=2)))
    mask = torch.ones_like(batch)
    mask[1, 5:] = 0
    together = model(batch, attention_mask=mask).logits
    alone = model(long).logits, model(short).logits
    close(together[:1].detach(), alone[0].detach())
    close(together[1:, :5].detach(), alone[1].detach())
    rows = [p for n, p in model.engram.named_parameters() if n.endswith("embedding.weight")]
    parts = (together[0].square().sum() + together[1, :5].square().sum()) / 100
    apart = sum(part.square().sum() for part in alone) / 100
    first, second = torch.autograd.grad(parts, rows), torch.autograd.grad(apart, rows)
    for found, expected in zip(first, second, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def chunked_prefill(model: PreTrainedModel) -> None:
    """Generate prefills a prompt in chunks."""
    if transformers.__version__.startswith(("5.0.", "5.2.")):
        pytest.skip("this release of transformers loses the cache between chunks")
    ids = text(VOCAB, 2, 11)
    assert torch.equal(generated(model, ids, prefill_chunk_size=4), by_hand(model, ids))


def multi_turn(model: PreTrainedModel) -> None:
    """The turns of a conversation reuse one cache."""
    cache = DynamicCache(config=model.config)
    ids = text(VOCAB, 1, 6)
    for turn in range(2):
        added = generated(model, ids, **with_cache(cache))
        assert torch.equal(added, by_hand(model, ids))
        ids = torch.cat((ids, added, text(VOCAB, 1, 3, seed=turn)), dim=1)


def assisted(model: PreTrainedModel) -> None:
    """Rejected draft tokens are removed from the cache and from the memory."""
    ids = torch.cat([text(VOCAB, 1, 4)] * 3, dim=1)
    found = generated(model, ids, prompt_lookup_num_tokens=3, eos_token_id=NEVER)
    assert torch.equal(found, by_hand(model, ids))


def static_cache(model: PreTrainedModel) -> None:
    """A cache with fixed addresses works, with left padding."""
    batch, mask = padded_left(text(VOCAB, 1, 3, seed=1), text(VOCAB, 1, 6, seed=2), 2)
    found = generated(model, batch, attention_mask=mask, cache_implementation="static")
    alone = [
        by_hand(model, line[kept.bool()][None]) for line, kept in zip(batch, mask, strict=True)
    ]
    assert torch.equal(found, torch.cat(alone))


def interleaved(model: PreTrainedModel) -> None:
    """Two sequences decoded in turns on one model do not affect each other."""
    one, two = text(VOCAB, 1, 8, seed=1), text(VOCAB, 2, 8, seed=2)
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(4):
        for kept, ids, cache in zip(found, (one, two), caches, strict=True):
            kept.append(fed(model, [ids[:, 2 * step : 2 * step + 2]], cache))
    for kept, ids in zip(found, (one, two), strict=True):
        close(torch.cat(kept, dim=1), logits(model, ids))


MODES: dict[str, Mode] = {
    "logits in pieces": logits_in_pieces,
    "greedy": greedy,
    "one-token prompt": one_token_prompt,
    "sampling": sampling,
    "beam search": beam_search,
    "left padding": left_padding,
    "right padding": right_padding,
    "chunked prefill": chunked_prefill,
    "multi-turn": multi_turn,
    "assisted": assisted,
    "static cache": static_cache,
    "interleaved": interleaved,
}

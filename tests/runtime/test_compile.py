"""torch.compile: one graph for a forward of fixed shape, one for every decode step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime.modes import fed
from tiny_models import MODULES, llama, logits, make_bundle, spec_of, text, wake
from transformers import PreTrainedModel, StaticCache

from engram_cli.runtime import attach
from engram_cli.runtime.state import FixedState
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=MODULES)
def model(
    request: pytest.FixtureRequest, small_vocab: CompressedVocab, tmp_path: Path
) -> PreTrainedModel:
    """A tiny Llama of two layers that carries a memory."""
    found = llama(small_vocab.vocab_size, layers=2)
    spec = spec_of(small_vocab, request.param, decoder_layers=(0, 1), num_layers=2)
    wake(attach(found, make_bundle(tmp_path / "engram", spec)))
    return found


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_forward_and_every_decode_step_are_one_graph_each(model: PreTrainedModel) -> None:
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    ids = text(200, 2, 12)
    expected = logits(model, ids, use_cache=False)
    found = logits(compiled, ids, use_cache=False)  # of the twins; the loops round elsewhere
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert graphs() == 1
    cache = StaticCache(config=model.config, max_cache_len=16)
    for _ in range(2):
        first = fed(model, [ids[:, :5]], cache)
        rest = fed(compiled, list(ids[:, 5:].split(1, dim=1)), cache)
        torch.testing.assert_close(torch.cat((first, rest), 1), expected, atol=1e-5, rtol=1e-5)
        cache.reset()
    assert graphs() == 2, "a decode step was compiled again"
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_static_state_keeps_its_addresses(model: PreTrainedModel) -> None:
    ids = text(200, 3, 9)
    cache = StaticCache(config=model.config, max_cache_len=16)
    fed(model, [ids[:, :4]], cache)
    state = cache._engram_states[model.engram.key]
    held = [state.tokens, *state.conv.values()]
    places = [tensor.data_ptr() for tensor in held]
    fed(model, [ids[:, 4:5], ids[:, 5:6]], cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    moved = ids[[2, 0, 0]]
    found = fed(model, [moved[:, 6:7], moved[:, 7:]], cache)
    torch.testing.assert_close(found, logits(model, moved)[:, 6:], atol=1e-5, rtol=1e-5)
    cache.reset()
    found = fed(model, [ids[:, :3]], cache)
    torch.testing.assert_close(found, logits(model, ids)[:, :3], atol=1e-5, rtol=1e-5)
    assert [t.data_ptr() for t in (state.tokens, *state.conv.values())] == places


def test_a_step_under_capture_reads_no_value(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CUDA graph records it: nothing may be read from the device then."""
    ids = text(200, 2, 9)
    expected = logits(model, ids, use_cache=False)
    cache = StaticCache(config=model.config, max_cache_len=16)
    fed(model, [ids[:, :8]], cache)

    def refuse(state: FixedState) -> int:
        raise AssertionError("the length was read")

    monkeypatch.setattr(FixedState, "length", property(refuse))
    with pytest.raises(AssertionError):
        fed(model, [ids[:, 8:]], copy.deepcopy(cache))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    found = fed(model, [ids[:, 8:]], cache)
    torch.testing.assert_close(found, expected[:, 8:], atol=1e-5, rtol=1e-5)


# inductor imports parts of torch that torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 3])
def test_inductor(model: PreTrainedModel, padding: int) -> None:
    ids = text(200, 2, 9)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    compiled: Any = torch.compile(model, fullgraph=True)
    found = logits(compiled, ids, attention_mask=mask, use_cache=False)
    expected = logits(model, ids, attention_mask=mask, use_cache=False)
    torch.testing.assert_close(found[0, padding:], expected[0, padding:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-4)
    compiled(ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.engram.parameters())

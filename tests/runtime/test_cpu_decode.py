"""Decode steps in loops give what the plain operations give, and give way to them where due."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_bundles import QUANTISED, quantised_bundle
from tiny_models import HIDDEN, LAYERS, MODULES, llama, make_bundle, spec_of, text, wake, with_cache
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from engram_cli.errors import TokenIdError
from engram_cli.runtime import attach, cpu_decode, memory, ops
from engram_cli.runtime.cpu_decode import DecodeStep
from engram_cli.runtime.recent import KEEP, Recent
from engram_cli.vocab.compress import CompressedVocab

VOCAB = 200


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[DecodeStep]:
    """The steps that loops computed."""
    found: list[DecodeStep] = []

    class Noted(DecodeStep):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            found.append(self)

    monkeypatch.setattr(memory, "DecodeStep", Noted)
    return found


def with_memory(
    folder: Path, vocab: CompressedVocab, kind: str = "engram-v1", **options: Any
) -> PreTrainedModel:
    """A tiny model with a memory that matters."""
    spec = spec_of(vocab, kind, **options)
    bundle = make_bundle(folder / "engram", spec)
    model = llama(vocab.vocab_size)
    wake(attach(model, bundle))
    return model


@pytest.fixture
def awake(tmp_path: Path, small_vocab: CompressedVocab) -> PreTrainedModel:
    return with_memory(tmp_path, small_vocab)


def fed(model: PreTrainedModel, pieces: list[Tensor], cache: Any = None) -> Tensor:
    """The logits of pieces [B, t] fed one after another with a cache."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    with torch.no_grad():
        found = [model(p, **with_cache(cache), use_cache=True).logits for p in pieces]
    return torch.cat(found, dim=1)


def plainly(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives without the loops."""
    with monkeypatch.context() as patch:
        patch.setattr(ops, "takes_decode_step", lambda ids: False)
        return run()


class Streams(nn.Module):
    """Layers whose hidden states have three streams, side by side or apart, and a cache."""

    def __init__(self, vocab_size: int, *, apart: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = None
        self.apart = apart
        self.embed = nn.Embedding(vocab_size, 3 * HIDDEN)
        self.layers = nn.ModuleList(nn.PReLU() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, cache: Any = None, use_cache: bool = True) -> Tensor:
        hidden = self.embed(input_ids)
        if self.apart:
            hidden = hidden.unflatten(-1, (3, HIDDEN))
        for layer in self.layers:
            hidden = layer(hidden)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return hidden


class Counted:
    """A cache that holds nothing."""

    length = 0

    def get_seq_length(self) -> int:
        return self.length


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("apart", [True, False])
def test_streams(
    kind: str, apart: bool, tmp_path: Path, small_vocab: CompressedVocab, steps: list[DecodeStep]
) -> None:
    model = Streams(small_vocab.vocab_size, apart=apart)
    bundle = make_bundle(tmp_path / "engram", spec_of(small_vocab, kind, streams=3))
    wake(attach(model, bundle, layers=list(model.layers)))
    ids, cache = text(VOCAB, 2, 20), Counted()
    with torch.no_grad():
        found = [model(p, cache=cache) for p in ids.split([10, 1, 2, 1, 1, 3, 2], 1)]
        expected = model(ids)
    # The norms of engram-v1 are a parameter for each stream, and no loop reads these.
    assert len(steps) == (0 if kind == "engram-v1" else 6)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_the_plain_ones(
    kind: str,
    batch: int,
    tmp_path: Path,
    small_vocab: CompressedVocab,
    steps: list[DecodeStep],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After prompts shorter and longer than what the convolution reads, and beyond the room."""
    model = with_memory(tmp_path, small_vocab, kind)
    for prompt in (1, 20):
        pieces = text(VOCAB, batch, prompt + KEEP + 12).split([prompt, 2, *[1] * (KEEP + 10)], 1)
        found = fed(model, pieces)
        assert len(steps) == len(pieces) - 1
        expected = plainly(monkeypatch, lambda own=pieces: fed(model, own))  # type: ignore[misc]
        assert len(steps) == len(pieces) - 1
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        steps.clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dense", [torch.float32, torch.bfloat16])
def test_dtypes_of_rows_and_weights(
    dtype: str,
    dense: torch.dtype,
    tmp_path: Path,
    small_vocab: CompressedVocab,
    steps: list[DecodeStep],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Halves are computed in float32, so they lie nearer to float32's result than torch's do."""
    model = with_memory(tmp_path, small_vocab, dtype=dtype)
    pieces = text(VOCAB, 2, 24).split([12, *[1] * 12], 1)
    exact = plainly(monkeypatch, lambda: fed(model, pieces))
    model.to(dense)
    found = fed(model, pieces)
    assert len(steps) == 12
    plain = plainly(monkeypatch, lambda: fed(model, pieces))
    if dense == torch.float32:
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
        return
    ours, torchs = ((x.float() - exact)[:, 12:].norm() for x in (found, plain))
    assert ours < 1.1 * torchs


def test_quantised_rows(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    steps: list[DecodeStep],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are read by torch, and the rest runs in a loop."""
    model = llama(small_vocab.vocab_size)
    wake(attach(model, quantised_bundle(tmp_path / "engram", small_vocab, QUANTISED[0])))
    pieces = text(VOCAB, 2, 12).split([8, 1, 1, 2], 1)
    found = fed(model, pieces)
    assert len(steps) == 3
    expected = plainly(monkeypatch, lambda: fed(model, pieces))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def halved(linear: nn.Linear) -> None:
    linear.weight.data = linear.weight.data / 2


def in_place(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight.mul_(0.5)


def replaced(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(linear.weight.detach() / 2)


def hooked(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda module, args, out: out / 2)


def patched(linear: nn.Linear) -> None:
    inner = linear.forward
    linear.forward = lambda x: inner(x) / 2  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [halved, in_place, replaced, hooked, patched])
def test_what_is_done_to_a_weight_counts_at_the_next_step(
    change: Callable[[nn.Linear], None],
    awake: PreTrainedModel,
    steps: list[DecodeStep],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = text(VOCAB, 1, 12)
    cache = DynamicCache(config=awake.config)
    before = fed(awake, list(ids.split([8, 1, 1, 1, 1], 1)))[:, -1]
    fed(awake, list(ids[:, :10].split([8, 1, 1], 1)), cache)
    for module in awake.engram.layers.values():
        module.value_proj.bias.data.zero_()
        change(module.value_proj)
    twin = copy.deepcopy(cache)
    steps.clear()
    found = fed(awake, list(ids[:, 10:].split([1, 1], 1)), cache)
    assert len(steps) == 2
    expected = plainly(monkeypatch, lambda: fed(awake, list(ids[:, 10:].split([1, 1], 1)), twin))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[:, -1] - before).abs().max() > 1e-3


def test_a_replaced_projection_is_called(
    awake: PreTrainedModel, steps: list[DecodeStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As adapters and quantised layers are, which are no nn.Linear."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x) * 2
            return out

    pieces = list(text(VOCAB, 2, 10).split([6, 1, 1, 1, 1], 1))
    before = fed(awake, pieces)
    module = next(iter(awake.engram.layers.values()))
    module.value_proj = Doubled(module.value_proj)
    found = fed(awake, pieces)
    assert len(steps) == 8
    expected = plainly(monkeypatch, lambda: fed(awake, pieces))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_large_projections_are_left_to_torch(
    awake: PreTrainedModel, steps: list[DecodeStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = list(text(VOCAB, 1, 10).split([6, 1, 1, 1, 1], 1))
    found = fed(awake, pieces)
    monkeypatch.setattr(cpu_decode, "_LOOP_BYTES", 1)
    awake.engram._plan = None
    again = fed(awake, pieces)
    assert [len(step.plan.linears) > 0 for step in steps] == [True] * 4 + [False] * 4
    torch.testing.assert_close(found, again, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_no_loop_takes(
    layer: int, awake: PreTrainedModel, steps: list[DecodeStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of that step may have run in loops before."""
    pieces = list(text(VOCAB, 2, 12).split([4, *[1] * 8], 1))
    expected = fed(awake, pieces)
    inner = DecodeStep.add
    refused = list(awake.engram.spec.layers)[layer]

    def add(self: DecodeStep, own: int, hidden: Tensor) -> Tensor | None:
        refuse = own == refused and len(steps) % 2
        return None if refuse else inner(self, own, hidden)

    monkeypatch.setattr(DecodeStep, "add", add)
    steps.clear()
    found = fed(awake, pieces)
    assert len(steps) == 8
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_step_that_failed_leaves_nothing(awake: PreTrainedModel, steps: list[Any]) -> None:
    ids = text(VOCAB, 1, 10)
    expected = fed(awake, list(ids.split([7, 1, 1, 1], 1)))
    cache = DynamicCache(config=awake.config)
    fed(awake, list(ids[:, :8].split([7, 1], 1)), cache)
    with pytest.raises(TokenIdError, match="outside 0"):
        fed(awake, [torch.tensor([[awake.config.vocab_size]])], cache)
    handle = awake.model.norm.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fed(awake, [ids[:, 9:10]], cache)
    handle.remove()
    cache.crop(-1)  # which the layers have filled
    found = fed(awake, list(ids[:, 8:].split([1, 1], 1)), cache)
    torch.testing.assert_close(found, expected[:, 8:], atol=1e-5, rtol=1e-5)


def test_a_state_that_was_used_meanwhile(awake: PreTrainedModel, steps: list[Any]) -> None:
    """What others made of it stays as it was."""
    ids = text(VOCAB, 1, 14)
    expected = fed(awake, [ids])
    cache = DynamicCache(config=awake.config)
    fed(awake, [ids[:, :8]], cache)
    twins: list[Any] = []
    handle = awake.model.layers[3].register_forward_pre_hook(
        lambda module, args: twins.append(copy.deepcopy(cache._engram_states))
    )
    found = fed(awake, list(ids[:, 8:].split(1, 1)), cache)
    handle.remove()
    assert len(steps) == len(twins) == 6
    torch.testing.assert_close(found, expected[:, 8:], atol=1e-5, rtol=1e-5)
    (first,) = twins[0].values()
    (state,) = cache._engram_states.values()
    assert (first.length, state.length) == (8, 14)
    assert torch.equal(first.tokens.last(), torch.cat(state.tokens.pieces, 1)[:, -8:-6])


def test_what_no_loop_takes(awake: PreTrainedModel, steps: list[DecodeStep]) -> None:
    ids = text(VOCAB, 2, 20)
    cache = DynamicCache(config=awake.config)
    fed(awake, list(ids[:, :12].split([6, 6], 1)), cache)  # 12 tokens at a time
    with torch.autocast("cpu", torch.bfloat16):
        fed(awake, [ids[:, 12:13]], cache)
    awake(ids[:, 13:14], **with_cache(cache), use_cache=True)  # which wants a gradient
    mask = torch.ones(2, 15, dtype=torch.int64)
    mask[0, -1] = 0
    with torch.no_grad():
        awake(ids[:, 14:15], attention_mask=mask, **with_cache(cache), use_cache=True)
    assert not steps
    fed(awake, [ids[:, 15:16]], cache)
    assert len(steps) == 1


def test_steps_under_inference_mode_and_after_it(
    awake: PreTrainedModel, steps: list[DecodeStep]
) -> None:
    ids = text(VOCAB, 1, 12)
    expected = fed(awake, [ids])
    cache = DynamicCache(config=awake.config)
    with torch.inference_mode():
        found = [fed(awake, list(ids[:, :8].split([5, 1, 1, 1], 1)), cache)]
    found.append(fed(awake, list(ids[:, 8:].split(1, 1)), cache))
    assert len(steps) == 7
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)


def test_a_plan_is_kept_while_nothing_changes(awake: PreTrainedModel, steps: list[Any]) -> None:
    pieces = list(text(VOCAB, 1, 9).split([6, 1, 1, 1], 1))
    fed(awake, pieces)
    fed(awake, pieces)
    assert len({id(step.plan) for step in steps}) == 1
    twin = copy.deepcopy(awake)
    fed(twin, pieces)
    assert len({id(step.plan) for step in steps}) == 2


def test_room_for_positions_is_nobody_elses() -> None:
    recent = Recent(3)
    recent.append(torch.arange(2).view(1, 2, 1))
    room, known = recent.make_room(1)
    assert (known, len(recent), recent.batch) == (3, 3, 1)
    assert room[0, :known, 0].tolist() == [0, 0, 1]  # zeros before the first
    room[:, known] = 7
    assert recent.has_room(room)
    recent.advance(1)
    held = recent.last()
    assert held.flatten().tolist() == [0, 1, 7]
    assert not recent.has_room(room)
    other, known = recent.make_room(1)
    other[:, known] = 8
    recent.advance(1)
    assert held.flatten().tolist() == [0, 1, 7]
    assert recent.last().flatten().tolist() == [1, 7, 8]
    for _ in range(3 * KEEP):
        room, known = recent.make_room(2)
        room[:, known : known + 2] = 9
        recent.advance(2)
        assert room.shape[1] <= 3 + 2 * KEEP
    assert recent.last().flatten().tolist() == [9, 9, 9]

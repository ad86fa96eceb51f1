"""The losses of variants of a model: against plain torch, over windows, in sums and parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import llama, logits, make_bundle, make_layout, make_spec, wake
from torch.nn import functional
from transformers import PreTrainedModel

from engram_cli.errors import InputError, TokenIdError
from engram_cli.runtime import attach, detach
from engram_cli.runtime.evaluation import evaluate_losses
from engram_cli.runtime.evaluation.gates import BINS, GateMeter, shares_above
from engram_cli.runtime.evaluation.scoring import Pace, Scored, score
from engram_cli.runtime.evaluation.sums import LossSums, Partition
from engram_cli.runtime.evaluation.variants import as_variant, variants_of
from engram_cli.runtime.evaluation.windows import DocumentEnd, Piece, Window, cut_windows
from engram_cli.runtime.tracing import trace
from engram_cli.vocab.compress import CompressedVocab

LENGTHS = (1, 2, 5, 17, 40, 41, 90, 3)
CONTEXT, STRIDE = 16, 10


@pytest.fixture(scope="module")
def documents(small_vocab: CompressedVocab) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, small_vocab.vocab_size, length) for length in LENGTHS]


def plain(model: PreTrainedModel, ids: NDArray[np.int64], context: int, stride: int) -> list[float]:
    """The loss of each token but the first, window by window, one at a time."""
    found: list[float] = []
    begin = 0
    while len(found) < len(ids) - 1:
        window = torch.tensor(ids[begin : begin + context])
        chances = functional.log_softmax(logits(model, window[None])[0].double(), dim=-1)
        own = -chances[:-1].gather(1, window[1:, None])[:, 0]
        fresh = begin + len(window) - 1 - len(found)
        found += own[len(own) - fresh :].tolist()
        begin += stride
    return found


def scored(
    model: PreTrainedModel, documents: list[NDArray[np.int64]], **options: int
) -> dict[int, dict[str, list[float]]]:
    """The losses that `score` gives, by document and variant."""
    pieces = (Piece(document=n, ids=ids) for n, ids in enumerate(documents))
    windows = cut_windows(pieces, options.pop("context", CONTEXT), options.pop("stride", STRIDE))
    found: dict[int, dict[str, list[float]]] = {}
    for item in score(model, windows, variants_of(model), batch_tokens=64, **options):
        if isinstance(item, Scored):
            own = found.setdefault(item.window.document, {})
            for name, losses in item.losses.items():
                own.setdefault(name, []).extend(losses.tolist())
    return found


def test_losses_equal_a_plain_loop(
    awake: PreTrainedModel, documents: list[NDArray[np.int64]]
) -> None:
    found = scored(awake, documents)
    assert set(found) == {n for n, length in enumerate(LENGTHS) if length > 1}
    for number, own in found.items():
        assert list(own) == ["bare", "memory"]
        for name, losses in own.items():
            with as_variant(awake, name):
                wanted = plain(awake, documents[number], CONTEXT, STRIDE)
            np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-5)
    differences = [np.abs(np.subtract(own["bare"], own["memory"])).max() for own in found.values()]
    assert min(differences) > 1e-3


def test_means_are_those_of_all_tokens(
    awake: PreTrainedModel, documents: list[NDArray[np.int64]]
) -> None:
    found = evaluate_losses(awake, documents, context=CONTEXT, stride=STRIDE, batch_tokens=50)
    every = scored(awake, documents)
    assert found.tokens == sum(LENGTHS) - len(LENGTHS)
    assert found.documents == len(every)
    for name in ("bare", "memory"):
        losses = np.concatenate([own[name] for own in every.values()])
        assert found.loss(name) == pytest.approx(losses.mean(), abs=1e-6)
    assert evaluate_losses(awake, documents, context=100, variants=["bare"]).loss("bare") > 0
    assert all(memory.active for memory in [awake.engram])


def test_an_identity_memory_changes_nothing(
    bare: PreTrainedModel, bundle: Path, documents: list[NDArray[np.int64]]
) -> None:
    attach(bare, bundle)  # fresh: its value projection is zero
    found = evaluate_losses(bare, documents, context=CONTEXT)
    assert found.units["memory"] == found.units["bare"]
    difference = found.interval("memory", "bare")
    assert (difference.mean, difference.error, difference.low) == (0.0, 0.0, 0.0)
    assert not difference.excludes_zero


def test_windows_score_every_token_once() -> None:
    for context, stride in ((2, 1), (5, 4), (8, 3), (100, 50)):
        for length in range(12):
            ids = np.arange(length)
            cuts = [ids[:3], ids[3:3], ids[3:7], ids[7:]]
            pieces = [Piece(document=4, ids=cut, bytes=len(cut)) for cut in cuts]
            *windows, end = cut_windows(pieces, context, stride)
            assert end == DocumentEnd(document=4, tokens=length, bytes=length)
            seen: list[int] = []
            for index, window in enumerate(windows):
                assert isinstance(window, Window)
                assert 2 <= len(window.ids) <= context
                assert window.start == index * stride
                assert window.ids.tolist() == ids[window.start :][: len(window.ids)].tolist()
                assert window.first >= 1 if index == 0 else window.first >= context - stride
                seen += window.scored.tolist()
                assert window.scored.tolist() == (window.start + window.context).tolist()
            assert seen == list(range(1, length))


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 4), (4, 0)])
def test_windows_that_leave_tokens_out(context: int, stride: int) -> None:
    with pytest.raises(InputError, match=r"a (context|stride) of"):
        list(cut_windows([], context, stride))


def test_parts_add_up_exactly(
    awake: PreTrainedModel, documents: list[NDArray[np.int64]], small_vocab: CompressedVocab
) -> None:
    parity = Partition(name="parity", labels=("even", "odd"), codes=lambda own: own.scored % 2)
    place = Partition(
        name="place", labels=("early", "late", "never"), codes=lambda own: (own.context > 7) * 1
    )
    names = variants_of(awake)
    sums = LossSums(names, (parity, place), vocabulary=small_vocab.vocab_size)
    pieces = (Piece(document=n, ids=ids, bytes=None) for n, ids in enumerate(documents))
    every: list[Scored] = []
    for item in score(awake, cut_windows(pieces, CONTEXT, STRIDE), names, batch_tokens=40):
        sums.add(item)
        every += [item] if isinstance(item, Scored) else []
    whole = sums.whole
    for partition in (parity, place):
        parts = sums.parts(partition.name)
        assert sum(part.tokens for part in parts.values()) == whole.tokens
        for name in names:
            assert sum(part.units[name] for part in parts.values()) == whole.units[name]
            for code, part in enumerate(parts.values()):
                pairs = [(partition.codes(item.window), item.losses[name]) for item in every]
                own = np.concatenate([losses[codes == code] for codes, losses in pairs])
                own = own.astype(np.float64)
                assert len(own) == part.tokens
                assert part.loss(name) == pytest.approx(own.mean() if len(own) else 0.0, abs=1e-6)
    never = sums.parts("place")["never"]
    assert (never.tokens, never.documents, never.interval("memory").error) == (0, 0, None)
    counts, units = sums.by_token()
    assert counts.sum() == whole.tokens
    assert all(units[name].sum() == whole.units[name] for name in names)
    assert (
        counts.tolist()
        == np.bincount(
            np.concatenate([ids[1:] for ids in documents]), minlength=small_vocab.vocab_size
        ).tolist()
    )
    assert (sums.documents, sums.tokens, sums.bytes) == (len(LENGTHS), sum(LENGTHS), None)


def test_the_interval_is_the_textbooks(
    awake: PreTrainedModel, documents: list[NDArray[np.int64]]
) -> None:
    """With documents of equal length it is that of the mean of the documents' differences."""
    equal = [ids[:17] for ids in documents if len(ids) >= 17]
    found = evaluate_losses(awake, equal, context=CONTEXT, stride=STRIDE)
    own = [evaluate_losses(awake, [ids], context=CONTEXT, stride=STRIDE) for ids in equal]
    means = np.array([each.loss("memory") - each.loss("bare") for each in own])
    interval = found.interval("memory", "bare")
    assert interval.mean == pytest.approx(means.mean(), abs=1e-9)
    error = means.std(ddof=1) / np.sqrt(len(means))
    assert interval.error == pytest.approx(error, rel=1e-6)
    assert interval.low is not None
    assert (interval.mean - interval.low) / error == pytest.approx(3.182446, rel=1e-5)
    assert own[0].interval("memory", "bare").error is None


def test_order_and_batches_change_no_sum(
    awake: PreTrainedModel, documents: list[NDArray[np.int64]]
) -> None:
    options = {"context": CONTEXT, "stride": STRIDE}
    one = evaluate_losses(awake, documents, batch_tokens=1, **options)
    other = evaluate_losses(awake, documents[::-1], batch_tokens=1, **options)
    assert one.units == other.units
    together = evaluate_losses(awake, documents, batch_tokens=10**6, **options)
    assert together.loss("memory") == pytest.approx(one.loss("memory"), abs=1e-6)


def test_gates_are_those_of_a_trace(
    awake: PreTrainedModel, documents: list[NDArray[np.int64]]
) -> None:
    meter, pace = GateMeter(awake), Pace()
    pieces = [Piece(document=n, ids=documents[n]) for n in (3, 4)]  # one of them padded
    windows = cut_windows(pieces, 64, 32)
    names = variants_of(awake)
    items = list(score(awake, windows, names, batch_tokens=128, gates=meter, pace=pace))
    assert len(items) == 4
    traced = [trace(awake, torch.tensor(documents[n])) for n in (3, 4)]
    for index, key in enumerate(meter.keys):
        gates = torch.cat([own.gates[key.layer] for own in traced])
        added = torch.cat([own.strengths[key.layer] for own in traced])
        count = int(meter.bins[index].sum())
        assert count == gates.numel()
        assert meter.positions[index] == len(added) == 57
        assert meter.sums[index, 0] / count == pytest.approx(gates.mean().item(), abs=1e-5)
        assert meter.sums[index, 1] / 57 == pytest.approx(added.mean().item(), rel=1e-4)
        shares = shares_above(meter.bins[index], (0.0, 0.5, 1.0))
        assert shares[0] == 1.0
        assert shares[1] == pytest.approx((gates >= 0.5).float().mean().item(), abs=1 / 57 + 1e-9)
    assert len(meter.bins[0]) == BINS
    assert pace.tokens == {"bare": 57, "memory": 57}
    assert min(pace.seconds.values()) > 0
    assert not awake.engram.layers["1"]._forward_hooks


def test_what_cannot_be_scored(
    small_vocab: CompressedVocab, bundle: Path, documents: list[NDArray[np.int64]]
) -> None:
    model = llama(small_vocab.vocab_size)
    with pytest.raises(InputError, match="no variant 'memory'"):
        evaluate_losses(model, documents, context=CONTEXT, variants=["memory"])
    with pytest.raises(InputError, match="no variant of the model"):
        evaluate_losses(model, documents, context=CONTEXT, variants=[])
    for bad in (small_vocab.vocab_size, -1):
        with pytest.raises(TokenIdError, match=f"document 1 has token id {bad}"):
            evaluate_losses(model, [[3, 4], [3, bad]], context=CONTEXT)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        evaluate_losses(model, documents, context=CONTEXT)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_adapters_and_memories_are_switched_apart(
    small_vocab: CompressedVocab, bundle: Path, documents: list[NDArray[np.int64]]
) -> None:
    peft = pytest.importorskip("peft")
    model = llama(small_vocab.vocab_size)
    plain = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config).eval()
    found = evaluate_losses(wrapped, documents, context=CONTEXT)
    assert list(found.units) == ["bare", "memory", "lora", "lora_memory"]
    assert len(set(found.units.values())) == 4
    assert found.units["bare"] == evaluate_losses(plain, documents, context=CONTEXT).units["bare"]
    wake(attach(plain, bundle))
    alone = evaluate_losses(plain, documents, context=CONTEXT)
    assert found.units["memory"] == alone.units["memory"]
    detach(wrapped)
    assert found.units["lora"] == evaluate_losses(wrapped, documents, context=CONTEXT).units["lora"]


def test_a_training_model_stays_one(
    small_vocab: CompressedVocab, documents: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    """Dropout is off meanwhile, and gradients and the mode are as before."""
    model = llama(small_vocab.vocab_size, attention_dropout=0.5).train()
    spec = make_spec(make_layout(small_vocab))
    wake(attach(model, make_bundle(tmp_path / "engram", spec)))
    first, second = (evaluate_losses(model, documents, context=CONTEXT) for _ in range(2))
    assert first.units == second.units
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())

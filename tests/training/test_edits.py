"""Edits of rows: which are chosen, what they learn, and what they do to other text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import text, wake
from transformers import AutoModelForCausalLM

from engram_cli.errors import InputError
from engram_cli.runtime import attach, detach
from engram_cli.runtime.evaluation.windows import Piece
from engram_cli.runtime.memory import Memory
from engram_cli.training.edits.choice import (
    Candidates,
    ChosenRows,
    best_rows,
    each_joined,
    every_row,
    joined,
)
from engram_cli.training.edits.divergence import EditReads, measure_divergence
from engram_cli.training.edits.influence import measure_influence
from engram_cli.training.edits.learning import FactTokens, learn_facts, row_sizes, tell_facts
from engram_cli.training.edits.rows import (
    RowValues,
    edited_rows,
    find_candidates,
    row_finder,
    values_at,
)


@pytest.fixture(scope="module")
def awake(checkpoint: Path, bundle: Path) -> Iterator[tuple[Any, Memory]]:
    """A model whose memory says something."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    memory = attach(model, bundle, rows_trainable=False)
    wake(memory)
    yield model, memory
    detach(model)


def candidates(hits: list[int]) -> Candidates:
    """Two layers, whose look-ups have the rows 0, 10, 20, ... of each."""
    shape = 2, len(hits) // 2, 1
    rows = np.arange(len(hits) // 2).reshape(1, -1, 1) * 10
    return Candidates(
        layers=(3, 5),
        rows=np.broadcast_to(rows, shape).astype(np.int64),
        hits=np.array(hits, dtype=np.uint64).reshape(shape),
    )


def taken(chosen: ChosenRows) -> set[tuple[int, int]]:
    return {(layer, int(row)) for layer, own in chosen.items() for row in own}


def test_the_rows_that_move_most_for_each_lookup_are_chosen() -> None:
    fact = candidates([9, 1, 1, 0, 5, 2])
    squares = np.array([9, 9, 4, 0, 9, 6], dtype=np.float32).reshape(fact.rows.shape)
    # By squares / (hits + 1): 0.9, 4.5, 2, none, 1.5, 2.
    assert taken(best_rows(fact, squares, 1, 1.0)) == {(3, 10)}
    assert taken(best_rows(fact, squares, 3, 1.0)) == {(3, 10), (3, 20), (5, 20)}
    assert taken(best_rows(fact, squares, 99, 1.0)) == taken(every_row(fact)) - {(5, 0)}
    assert taken(best_rows(fact, squares, 99, 1.0, most_hits=1.0)) == {(3, 10), (3, 20)}
    # Where the corpus hardly reads any of them, gradients alone decide.
    assert taken(best_rows(fact, squares, 3, 1e9)) == {(3, 0), (3, 10), (5, 10)}
    assert taken(every_row(fact, most_hits=1.0)) == {(3, 10), (3, 20), (5, 0)}


def test_a_row_that_a_fact_reads_twice_counts_once_with_both_gradients() -> None:
    fact = candidates([1, 1, 1, 1])
    twice = Candidates(
        layers=fact.layers,
        rows=np.concatenate([fact.rows, fact.rows], axis=1),
        hits=np.concatenate([fact.hits, fact.hits], axis=1),
    )
    squares = np.array([2, 3, 2, 0, 0, 0, 2, 1], dtype=np.float32).reshape(twice.rows.shape)
    assert taken(best_rows(twice, squares, 1, 0.0)) == {(3, 0)}
    each = each_joined(2, [(1, best_rows(twice, squares, 2, 0.0)), (1, {3: np.array([7])})])
    assert taken(each[0]) == set()
    assert taken(each[1]) == {(3, 0), (3, 10), (3, 7)}
    assert taken(joined([{5: np.array([4])}, {5: np.array([4, 2])}])) == {(5, 2), (5, 4)}


def test_influence_is_the_gradient_by_what_was_looked_up(awake: tuple[Any, Memory]) -> None:
    """Compared with differences of the loss: a step along one vector of the fact's look-ups."""
    model, memory = awake
    facts, finder = facts_of(), row_finder(memory)
    found = {(own.fact, own.token): own.squares for own in measure_influence(
        model, memory, facts, batch_tokens=16)}  # fmt: skip
    assert {key[0] for key in found} == {0, 1, 2}
    assert sum(fact.tokens for fact in facts) == len(found)
    layer = memory.spec.layers[0]
    fact, rows = facts[0], find_candidates(memory, finder, facts[0].ids, None).rows
    assert found[0, 0].shape == rows.shape
    # What is looked up after the position that predicts the token does not move it.
    assert (found[0, 0][:, fact.first :] == 0).all()
    assert (found[0, 0][:, fact.first - 1] > 0).any()
    row = rows[0, fact.first - 1, -1]
    assert (rows[0] == row).sum() == 1
    start = values_at(memory, layer, torch.tensor([row]))

    def loss(values: torch.Tensor) -> float:
        with edited_rows(memory, {layer: RowValues(rows=torch.tensor([row]), values=values)}):
            ids = torch.from_numpy(fact.ids)[None]
            with torch.no_grad():
                scores = F.log_softmax(model(ids).logits.double(), dim=-1)
        return -scores[0, fact.first - 1, fact.ids[fact.first]].item()

    steps = torch.eye(memory.spec.dim) * 1e-2
    slopes = [(loss(start + step) - loss(start - step)) / 2e-2 for step in steps]
    expected = sum(slope**2 for slope in slopes)
    assert found[0, 0][0, fact.first - 1, -1] == pytest.approx(expected, rel=0.02)


def facts_of(seed: int = 0) -> list[FactTokens]:
    ids = text(300, 3, 9, seed).numpy()
    return [FactTokens(ids=ids[i, : 9 - i], first=6 - i) for i in range(3)]


def rows_of(memory: Memory, facts: list[FactTokens], every: int) -> dict[int, Any]:
    """Every so many rows that the facts read."""
    finder, found = row_finder(memory), {}
    for place, layer in enumerate(memory.spec.layers):
        read = [finder.find(torch.from_numpy(f.ids)[None])[0, place, :-1] for f in facts]
        rows = np.unique(np.concatenate([own.numpy().reshape(-1) for own in read]))
        found[layer] = rows[::every].astype(np.int64)
    return found


def learned(
    model: Any, memory: Memory, facts: list[FactTokens], rows: dict[int, Any], steps: int = 80
) -> Any:
    given = {"rate": 0.3, "margin": 1.0, "batch_tokens": 16}
    return learn_facts(model, memory, facts, rows, row_sizes(memory, rows), steps=steps, **given)


def test_facts_are_learned_and_nothing_else_of_the_model_changes(awake: tuple[Any, Memory]) -> None:
    model, memory = awake
    before = {name: value.clone() for name, value in model.state_dict().items()}
    facts = facts_of()
    rows = rows_of(memory, facts, 1)
    told = tell_facts(model, facts, margin=1.0, batch_tokens=16)
    assert not told.exact.all()
    found = learned(model, memory, facts, rows)
    assert found.steps < 80
    assert {n: own.rows.tolist() for n, own in found.edits.items()} == {
        n: own.tolist() for n, own in rows.items()
    }
    with edited_rows(memory, found.edits):
        after = tell_facts(model, facts, margin=1.0, batch_tokens=16)
        for fact in facts:  # with a cache, token by token
            prompt = torch.from_numpy(fact.ids[: fact.first])[None]
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=fact.tokens,
                do_sample=False,
                eos_token_id=None,
            )
            assert out[0].tolist() == fact.ids.tolist()
    assert after.sure.all()
    assert (after.losses < told.losses).all()
    assert before.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any(
        weight.requires_grad and weight.grad is not None for weight in model.parameters()
    )


def test_rows_of_learned_facts_stay_and_the_result_is_the_same_again(
    awake: tuple[Any, Memory],
) -> None:
    model, memory = awake
    facts = facts_of(1)
    rows = rows_of(memory, facts, 1)
    one, two = (learned(model, memory, facts, rows, steps=30) for _ in range(2))
    for layer, own in one.edits.items():
        assert torch.equal(own.values, two.edits[layer].values)
    with edited_rows(memory, one.edits):  # it knows them: nothing is left to do
        again = learned(model, memory, facts, {})
        told = tell_facts(model, facts, margin=1.0, batch_tokens=16)
    assert again.steps == 0
    assert again.edits == {}
    assert told.sure.all()


def test_an_infinite_loss_names_the_fact(awake: tuple[Any, Memory]) -> None:
    model, memory = awake
    facts = facts_of()
    rows = rows_of(memory, facts, 1)
    edits = {
        layer: RowValues(
            rows=torch.from_numpy(own), values=torch.full((len(own), memory.spec.dim), torch.nan)
        )
        for layer, own in rows.items()
    }
    with edited_rows(memory, edits), pytest.raises(InputError, match="on fact 1 is not finite"):
        tell_facts(model, facts, margin=1.0, batch_tokens=99)


def some_edits(memory: Memory, share: float) -> dict[int, RowValues]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in memory.spec.layers:
        height = memory.spec.layout.layer(layer).rows
        rows = (torch.rand(height, generator=generator) < share).nonzero()[:, 0]
        noise = torch.randn(len(rows), memory.spec.dim, generator=generator)
        found[layer] = RowValues(rows=rows, values=values_at(memory, layer, rows) + noise)
    return found


def pieces(count: int = 4, length: int = 23) -> list[Piece]:
    return [
        Piece(document=n, ids=text(300, 1, length + n, seed=n)[0].numpy()) for n in range(count)
    ]


def measured(model: Any, memory: Memory, edits: dict[int, RowValues], **options: Any) -> Any:
    return measure_divergence(
        model,
        options.pop("pieces", pieces()),
        lambda: edited_rows(memory, edits),
        options.pop("reads", EditReads(row_finder(memory), memory, edits)),
        context=options.pop("context", 64),
        batch_tokens=64,
    )


def test_the_divergence_is_that_of_the_definition(awake: tuple[Any, Memory]) -> None:
    model, memory = awake
    edits = some_edits(memory, 0.1)
    total, tokens, change = 0.0, 0, 0.0
    for piece in pieces():
        ids = torch.from_numpy(piece.ids)[None]
        with torch.no_grad():
            old = F.log_softmax(model(ids).logits.double(), dim=-1)[0, :-1]
            with edited_rows(memory, edits):
                new = F.log_softmax(model(ids).logits.double(), dim=-1)[0, :-1]
        total += F.kl_div(new, old, log_target=True, reduction="sum").item()
        change += (old - new).gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    found = measured(model, memory, edits)
    assert found.scored == tokens
    assert found.divergence.mean == pytest.approx(total / tokens, rel=1e-4)
    assert found.change.mean == pytest.approx(change / tokens, rel=1e-3, abs=1e-6)
    assert found.divergence.low < found.divergence.mean < found.divergence.high


def test_text_that_reads_no_edited_row_is_not_run_and_changes_nothing(
    awake: tuple[Any, Memory],
) -> None:
    model, memory = awake
    edits = some_edits(memory, 0.004)
    runs: list[int] = []
    handle = model.register_forward_hook(lambda *given: runs.append(1))
    try:
        found = measured(model, memory, edits)
        counted = len(runs)
        everywhere = measured(model, memory, edits, reads=None)
    finally:
        handle.remove()
    assert 0 < found.read < found.tokens
    assert found.lookups >= found.read
    assert counted < len(runs) - counted
    assert found.divergence.mean == pytest.approx(everywhere.divergence.mean, rel=1e-5, abs=1e-9)
    none = measured(model, memory, {})
    assert (none.read, none.divergence.mean, none.change.mean) == (0, 0.0, 0.0)


def test_long_documents_are_cut_and_each_token_counts_once(awake: tuple[Any, Memory]) -> None:
    model, memory = awake
    edits = some_edits(memory, 0.1)
    found = measured(model, memory, edits, context=8)
    assert found.scored == sum(len(piece.ids) - 1 for piece in pieces())
    assert found.tokens == sum(len(piece.ids) for piece in pieces())
    assert found.read <= found.tokens


def test_predictions_that_are_not_finite_are_an_error(awake: tuple[Any, Memory]) -> None:
    model, memory = awake
    edits = {
        layer: RowValues(rows=own.rows, values=own.values * torch.nan)
        for layer, own in some_edits(memory, 0.5).items()
    }
    with pytest.raises(InputError, match="predictions are not finite"):
        measured(model, memory, edits)
    rows = torch.arange(5)
    assert bool(torch.isfinite(values_at(memory, 1, rows)).all())  # the memory is as it was

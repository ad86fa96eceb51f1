"""Weights of evidence: those of what tells tokens apart, and none for what does not."""

from __future__ import annotations

import numpy as np
import pytest

from engram_cli.table.probe.combining import fit
from engram_cli.table.probe.reading import Answers


def answers_of(evidence: np.ndarray, tokens: np.ndarray, known: np.ndarray) -> Answers:
    return Answers(
        tokens=tokens,
        single=np.ones(tokens.shape, dtype=bool),
        evidence=evidence.astype(np.float32),
        known=known.astype(np.float32),
        alone={},
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_a_constant_feature_has_no_weight(constant: float, named: bool) -> None:
    """Nor has anything times how often the n-gram was seen where that never changes."""
    generator = np.random.default_rng(1)
    questions, choices = 400, 5
    tokens = np.tile(np.arange(choices), (questions, 1))
    truth = generator.integers(0, choices, questions)
    told = (tokens == truth[:, None]) + generator.normal(0, 0.3, tokens.shape)
    same = np.full(tokens.shape, constant)
    answers = answers_of(np.stack([told, same], axis=2), tokens, np.full(questions, 3.7))
    floor = np.full(choices + 1, 1 / (choices + 1))
    found = fit(answers, truth if named else np.full(questions, choices), floor)
    assert np.all(np.isfinite(found.weights))
    assert found.weights[0] > 1.0
    assert found.weights[1:].tolist() == [0.0, 0.0, 0.0]
    if named:
        assert np.mean(found.choose(answers) == truth) > 0.9

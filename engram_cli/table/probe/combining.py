"""The orders combined: weights of the evidence and a share for what it does not name, both fitted.

In: answers and the true tokens of some positions. Out: a model that chooses among the answers of
others and says how likely each token is. A softmax over the answers' weighted evidence, whose
weights hold its temperature and change with how often the longest n-gram may have been seen; the
rest goes to the tokens in proportion to the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.probe.reading import Answers

_STEPS = 300
_RATE = 0.1
_BINS = 8
_CONSTANT = 1e-6  # times its largest value: float32 that varies by no more tells nothing apart
_SHARES = np.concatenate([[0.001, 0.01], np.linspace(0.05, 0.95, 19), [0.99]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combination:
    """`weights` float64[2 * F]: of the evidence, and of it times (known - `centre`) / `spread`.

    Where the best answer's chance lies between two of `edges` [B-1], the answers together are given
    `shares` [B], the rest of the tokens the rest.
    """

    weights: NDArray[np.float64]
    centre: float
    spread: float
    edges: NDArray[np.float64]
    shares: NDArray[np.float64]

    def choose(self, answers: Answers) -> NDArray[np.int64]:
        """Return int64[Q]: the best token of each question."""
        best = np.argmax(self._chances(answers), axis=1)
        return np.take_along_axis(answers.tokens, best[:, None], axis=1)[:, 0]

    def likelihood(
        self, answers: Answers, truth: NDArray[np.int64], floor: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return float64[Q]: the chance of each true token; `floor` float64[V] sums to 1."""
        chances = self._chances(answers)
        named = _of_truth(answers, chances, truth)
        share = self.shares[np.searchsorted(self.edges, chances.max(axis=1))]
        return np.asarray(share * named + (1 - share) * floor[truth])

    def _chances(self, answers: Answers) -> NDArray[np.float64]:
        logits = _evidence(answers, self.centre, self.spread) @ self.weights
        return _softmax(logits, answers.single)


def fit(answers: Answers, truth: NDArray[np.int64], floor: NDArray[np.float64]) -> Combination:
    """Return the combination under which the true tokens are likeliest; the same for the same
    input."""
    known = answers.known.astype(np.float64)
    centre, spread = float(known.mean()), float(_spread(known))
    evidence = _evidence(answers, centre, spread)
    weights = _fit_weights(answers, evidence, truth)
    chances = _softmax(evidence @ weights, answers.single)
    best = chances.max(axis=1)
    edges = np.quantile(best, np.linspace(0, 1, _BINS + 1)[1:-1])
    named, place = _of_truth(answers, chances, truth), np.searchsorted(edges, best)
    shares = np.full(_BINS, 0.5)
    for index in range(_BINS):
        own = place == index
        if own.any():
            mixed = _SHARES[:, None] * named[own] + (1 - _SHARES[:, None]) * floor[truth[own]]
            shares[index] = _SHARES[np.argmax(np.log(mixed).sum(axis=1))]
    return Combination(weights=weights, centre=centre, spread=spread, edges=edges, shares=shares)


def _evidence(answers: Answers, centre: float, spread: float) -> NDArray[np.float64]:
    """Return float64[Q, K, 2 * F]."""
    known = ((answers.known.astype(np.float64) - centre) / spread)[:, None, None]
    return np.concatenate([answers.evidence, answers.evidence * known], axis=2)


def _fit_weights(
    answers: Answers, evidence: NDArray[np.float64], truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Gradient ascent (Adam) on the likelihood of the true tokens, where they are among the
    answers."""
    right = (answers.tokens == truth[:, None]) & answers.single
    named = right.any(axis=1)
    scale = _spread(evidence.reshape(-1, evidence.shape[-1]))
    if not named.any():
        return np.asarray(1.0 / scale)
    evidence = evidence[named] / scale
    single, right = answers.single[named], right[named]
    target = evidence[right].mean(axis=0)
    weights, first, second = np.ones((3, len(scale))) * [[1.0], [0.0], [0.0]]
    for step in range(1, _STEPS + 1):
        chances = _softmax(evidence @ weights, single)
        gradient = target - np.einsum("qk,qkf->f", chances, evidence) / len(evidence)
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        size = np.sqrt(second / (1 - 0.99**step)) + 1e-9
        weights = weights + _RATE * first / (1 - 0.9**step) / size
    return np.asarray(weights / scale)


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation of each column; infinite for one that is constant, so that what
    is divided by it counts for nothing."""
    spread = np.asarray(values.std(axis=0))
    return np.where(spread <= _CONSTANT * np.abs(values).max(axis=0), np.inf, spread)


def _softmax(logits: NDArray[np.float64], single: NDArray[np.bool_]) -> NDArray[np.float64]:
    logits = np.where(single, logits, -np.inf)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def _of_truth(
    answers: Answers, chances: NDArray[np.float64], truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    right = (answers.tokens == truth[:, None]) & answers.single
    return np.asarray((chances * right).sum(axis=1))

"""The result of patch make: each fact, the rows that changed, and what else they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FactResult:
    """A fact of a `line` of the edits file.

    `exact_before`, `exact_after`: whether the model, decoding greedily, continues the prompt with
    the whole target. `loss_before`, `loss_after`: nats per target token. `tokens`: of the target;
    `rows`: that were changed for it; `hits`: look-ups of the corpus that read these rows, None
    where they were not counted.
    """

    line: int
    prompt: str
    target: str
    tokens: int
    rows: int
    hits: int | None
    exact_before: bool
    exact_after: bool
    loss_before: float
    loss_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadNgram:
    """An n-gram of the corpus that reads changed rows: how often it occurs, or `exact` False at
    most; `rows` that it reads; `lookups` of them; `edited`: it is in a fact."""

    order: int
    text: str
    tokens: tuple[int, ...]
    count: int
    exact: bool
    rows: int
    lookups: int
    edited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The look-ups of a corpus that read a changed row, and the n-grams that do, the most first.

    `lookups` of its `tokens`; `per_million`: per million tokens; `candidates_per_million`: if all
    rows of the facts' n-grams were changed. `ngrams` are empty without a sample of n-grams.
    """

    counted_by: Path
    tokens: int
    lookups: int
    per_million: float
    candidates_per_million: float
    ngrams: tuple[ReadNgram, ...]
    ngrams_known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the patch does to the predictions on held-out text, in nats per token.

    `divergence`: KL(unpatched || patched), with its 95 % interval over documents, None for too few;
    `loss_change`: of the mean loss. `read`: tokens at which a changed row is read; `per_million`:
    look-ups of changed rows per million tokens.
    """

    documents: int
    tokens: int
    read: int
    per_million: float
    divergence: float
    low: float | None
    high: float | None
    loss_change: float
    loss_low: float | None
    loss_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMakeResult:
    """A patch that was made: its file and digest, its facts, and what it changes.

    `rows`: changed, `candidates`: of all n-grams of the facts. `steps`: taken, `most_steps`: that
    were allowed. `predicted`: None where no hits were counted; `measured`: None without held-out
    text.
    """

    checkpoint: Path
    bundle: Path
    patch: Path
    digest: str
    facts: tuple[FactResult, ...]
    exact_before: int
    exact_after: int
    rows: int
    candidates: int
    rows_by_order: dict[int, int]
    steps: int
    most_steps: int
    predicted: Predicted | None
    measured: Measured | None
    device: str
    dtype: str
    seconds: float

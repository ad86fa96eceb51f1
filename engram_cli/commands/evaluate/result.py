"""The results of evaluate: losses by variant, differences, parts of the text, gates, passages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantLoss:
    """A variant of the model: its `loss` in nats per token, with its standard error over documents.

    `bits_per_byte`: of the documents' texts in UTF-8, None for token ids. `tokens_per_second`: that
    the model read, of all processes together.
    """

    variant: str
    loss: float
    error: float | None
    perplexity: float
    bits_per_byte: float | None
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How many nats per token `variant` is above `than`; below zero it is better.

    `low`, `high`: the 95 % interval over documents; None with `error` for too few documents, or
    where losses were not summed by document.
    """

    variant: str
    than: str
    mean: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A part of the text: its scored `tokens`, the losses by variant, and their differences.

    `share`: what the part adds to each difference of the whole text, in nats per token of the whole
    text; the shares of all parts add up to it.
    """

    label: str
    tokens: int
    losses: dict[str, float]
    differences: tuple[Difference, ...]
    share: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The whole text parted in one way."""

    name: str
    title: str
    parts: tuple[TextPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStrength:
    """The gates of a layer of a memory over `tokens` tokens that it read.

    `mean` of all streams; `above`: the share of gates at least as open as each threshold; `added`:
    the mean norm of what was added over that of the hidden state.
    """

    memory: str
    layer: int
    decoder_layer: int
    tokens: int
    mean: float
    above: dict[str, float]
    added: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChange:
    """A token by its id and text: how often it was scored, and what it adds to the difference.

    `mean`: the difference in nats each time; `total`: summed over the text.
    """

    id: int
    text: str
    count: int
    mean: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Consecutive scored tokens of a document, from its token `position` on.

    `pieces` are the texts of the tokens, `losses` their losses by variant, in nats.
    """

    kind: str
    document: int
    name: str
    position: int
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    losses: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """The losses of a model over a held-out text, in nats per token.

    `bare`, `memory`, `patched`, `lora`, `lora_memory`: None for a variant that was not there;
    `patched` is the memory under `patches`, in the order in which they were applied. `tokens` were
    read in `documents`, `scored` of them predicted. `bytes`: of the texts, None for token ids.
    `bos`: the token put before each document. `statistics`: what said which n-grams the memory's
    corpus has, None for nothing. `exact`: whether it names all of them; if not, an n-gram counts as
    known where other n-grams fill its rows. `passages` are there if a report was asked for.
    `process`: the number of this process; all have the same results.
    """

    checkpoint: Path
    bundle: Path | None
    patches: tuple[Path, ...]
    adapter: Path | None
    statistics: Path | None
    exact: bool
    documents: int
    tokens: int
    scored: int
    bytes: int | None
    context: int
    stride: int
    bos: int | None
    device: str
    dtype: str
    processes: int
    bare: float
    memory: float | None
    patched: float | None
    lora: float | None
    lora_memory: float | None
    losses: tuple[VariantLoss, ...]
    differences: tuple[Difference, ...]
    breakdowns: tuple[Breakdown, ...]
    gates: tuple[GateStrength, ...]
    gaining: tuple[TokenChange, ...]
    losing: tuple[TokenChange, ...]
    passages: tuple[Passage, ...]
    seconds: float
    report: Path | None = None
    process: int = 0

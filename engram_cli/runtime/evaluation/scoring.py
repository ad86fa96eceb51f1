"""Runs the variants of a model over windows of text: the loss of every token under each of them.

Windows of similar length share a batch. A few batches' worth of windows are held at a time, so that
memory does not grow with the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.errors import InputError, TokenIdError
from engram_cli.runtime.evaluation.gates import GateMeter
from engram_cli.runtime.evaluation.variants import as_variant
from engram_cli.runtime.evaluation.windows import DocumentEnd, Window, batches

POOL = 16  # batches whose windows are sorted by length together
_CHUNK = 2**24  # logits that become float32 at a time: 64 MiB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A window with the losses of its scored tokens, float32[scored] in nats, by variant."""

    window: Window
    losses: dict[str, NDArray[np.float32]]


@dataclass(slots=True)
class Pace:
    """How fast a model was: `tokens` that it read and `seconds` that it took, by variant.

    The first batch counts only where there is no other: kernels are compiled and memory is taken.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _batches: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self._batches[name] = self._batches.get(name, 0) + 1
        if self._batches[name] == 2:
            del self.tokens[name], self.seconds[name]
        self.tokens[name] = self.tokens.get(name, 0) + tokens
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def tokens_per_second(self, name: str) -> float:
        """Return how many tokens a variant read per second; 0 for one that read none."""
        seconds = self.seconds.get(name, 0.0)
        return self.tokens.get(name, 0) / seconds if seconds else 0.0

    @classmethod
    def together(cls, paces: Sequence[Pace]) -> Pace:
        """Return the pace of processes side by side, which take as long as the slowest."""
        names = dict.fromkeys(name for pace in paces for name in pace.seconds)
        return cls(
            tokens={name: sum(pace.tokens.get(name, 0) for pace in paces) for name in names},
            seconds={name: max(pace.seconds.get(name, 0.0) for pace in paces) for name in names},
        )


def score(
    model: nn.Module,
    windows: Iterable[Window | DocumentEnd],
    variants: Sequence[str],
    *,
    batch_tokens: int,
    gates: GateMeter | None = None,
    pace: Pace | None = None,
    advance: Callable[[int], None] = lambda _: None,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Scored | DocumentEnd]:
    """Yield every window with its losses, and the end of a document after all of its windows.

    A batch has at most `batch_tokens` tokens, padding included, but at least one window. `gates`
    measures the memory's gates under the last variant that has it. `pace` counts tokens and time.
    `before` is called before each batch, `advance` after it with its scored tokens. The model's
    mode and its gradients stay as they are. Raises TokenIdError for an id that the model does not
    know, InputError for losses that are not finite.
    """
    pool: list[Window] = []
    ends: list[DocumentEnd] = []
    held = 0

    def scored() -> Iterator[Scored]:
        found: dict[int, Scored] = {}
        for batch in batches(pool, batch_tokens):
            before()
            for each in _score_batch(model, batch, variants, gates, pace):
                found[id(each.window)] = each
            advance(sum(len(window.scored) for window in batch))
        yield from (found[id(window)] for window in pool)

    for item in windows:
        if isinstance(item, DocumentEnd):
            ends.append(item)
            continue
        pool.append(item)
        held += len(item.ids)
        if held >= POOL * batch_tokens:
            yield from scored()
            yield from ends
            pool, ends, held = [], [], 0
    yield from scored()
    yield from ends


def _score_batch(
    model: nn.Module,
    batch: list[Window],
    variants: Sequence[str],
    gates: GateMeter | None,
    pace: Pace | None,
) -> list[Scored]:
    """Return the windows of one batch with their losses."""
    ids, mask = padded_batch(batch, model)
    read = sum(len(window.ids) for window in batch)
    losses: list[dict[str, NDArray[np.float32]]] = [{} for _ in batch]
    measured = [name for name in variants if "memory" in name][-1:]
    for name in variants:
        measures = gates is not None and name in measured
        with as_variant(model, name), gates if gates and measures else nullcontext():
            begin = time.perf_counter()
            own = token_losses(model, ids, mask).cpu().numpy()
            seconds = time.perf_counter() - begin
        if gates is not None and measures:
            seconds -= gates.take_seconds()
        if pace is not None:
            pace.add(name, read, max(seconds, 1e-9))
        for line, window, into in zip(own, batch, losses, strict=True):
            into[name] = line[window.first - 1 : len(window.ids) - 1]
            if not np.isfinite(into[name]).all():
                raise InputError(
                    f"the model's losses are not finite (variant {name}, document "
                    f"{window.document:,}, from token {window.start:,} on)",
                    "the weights hold NaN or overflow in this dtype: try --dtype float32",
                )
    return [Scored(window=w, losses=own) for w, own in zip(batch, losses, strict=True)]


def token_losses(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the losses in nats, float32[B, T - 1], of the tokens ids[:, 1:], each given those
    before it.

    `ids` int64[B, T]; `mask` bool[B, T], False at padding on the right. Float32 copies are made of
    a part of the logits at a time.
    """
    given: dict[str, Any] = {} if mask is None else {"attention_mask": mask.long()}
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False, **given).logits
    finally:
        model.train(training)
    found = torch.empty(ids.shape[0], ids.shape[1] - 1, dtype=torch.float32, device=logits.device)
    targets = ids.to(logits.device)[:, 1:]
    step = max(_CHUNK // logits.shape[-1], 1)
    for line in range(len(ids)):
        for begin in range(0, targets.shape[1], step):
            part = slice(begin, min(begin + step, targets.shape[1]))
            found[line, part] = F.cross_entropy(
                logits[line, part].float(), targets[line, part], reduction="none"
            )
    return found


def device_of(model: nn.Module) -> torch.device:
    """Return where a model takes its token ids: the device of its input embedding."""
    weight = _input_weight(model)
    return next(model.parameters()).device if weight is None else weight.device


def padded_batch(batch: list[Window], model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return ids int64[B, T] and the mask, None without padding. Raises TokenIdError."""
    longest = max(len(window.ids) for window in batch)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    for line, window in zip(ids, batch, strict=True):
        line[: len(window.ids)] = window.ids
    weight = _input_weight(model)
    size = 2**63 if weight is None else len(weight)
    if ids.min() < 0 or ids.max() >= size:
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        where = next(window for window in batch if bad in window.ids)
        named = f" ({where.name})" if where.name else ""
        raise TokenIdError(
            f"document {where.document:,}{named} has token id {bad}, the model takes 0 to "
            f"{size - 1:,}",
            "was the text tokenised with another tokenizer?",
        )
    device = device_of(model)
    mask = np.arange(longest) < np.array([[len(window.ids)] for window in batch])
    as_mask = None if mask.all() else torch.from_numpy(mask).to(device)
    return torch.from_numpy(ids).to(device), as_mask


def _input_weight(model: Any) -> Tensor | None:
    """Return the input embedding's weight [V, d], None where the model does not say."""
    getter = getattr(model, "get_input_embeddings", None)
    weight = getattr(getter() if callable(getter) else None, "weight", None)
    return weight if isinstance(weight, Tensor) else None

"""Measures how far a change moves a model on other text: the KL divergence per token.

KL(p || q) of the predictions p of the model as it was from those q of the changed one, in nats:
what the changed model loses on text that the model as it was would write. A window of text in which
nothing reads an edited row has none, and the model need not read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_cli.errors import InputError
from engram_cli.runtime.batch_rows import RowFinder
from engram_cli.runtime.evaluation.intervals import Interval
from engram_cli.runtime.evaluation.scoring import POOL, Scored, padded_batch
from engram_cli.runtime.evaluation.sums import LossSums
from engram_cli.runtime.evaluation.windows import DocumentEnd, Piece, Window, batches, cut_windows
from engram_cli.runtime.memory import Memory
from engram_cli.training.edits.rows import RowValues

_CHUNK = 2**23  # logits of each model that become float32 at a time: 32 MiB
_DIVERGENCE, _CHANGE = "divergence", "change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """What a change does to a text of so many `documents` and `tokens`, `scored` of them predicted.

    `divergence` and `change`, that of the loss: in nats per token, with intervals over documents.
    `read`: tokens at which an edited row is read; `lookups`: how often such rows are read.
    """

    documents: int
    tokens: int
    scored: int
    read: int
    lookups: int
    divergence: Interval
    change: Interval


def measure_divergence(
    model: nn.Module,
    pieces: Iterable[Piece],
    changed: Callable[[], AbstractContextManager[Any]],
    reads: EditReads | None = None,
    *,
    context: int,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Divergence:
    """Return how far the predictions of a model on documents move in the context of `changed`.

    `reads`: the edits that are made in it, so that text which reads none of them need not be run.
    Longer documents are cut into windows of `context` tokens; what is held does not grow with the
    text. Raises TokenIdError for ids that the model lacks, InputError for predictions that are not
    finite.
    """
    sums = LossSums((_DIVERGENCE, _CHANGE))
    training = model.training
    model.eval()
    try:
        # The first token of a later window is the last of the one before: context, not scored.
        windows = cut_windows(pieces, context, context - 1)
        for pool, ends in _pools(windows, POOL * batch_tokens):
            met = [window for window in pool if reads is None or reads.count(window)]
            found = {
                id(each.window): each
                for batch in batches(met, batch_tokens)
                for each in _compare(model, batch, changed)
            }
            for window in pool:
                sums.add(found.get(id(window)) or _unmoved(window))
            for end in ends:
                sums.add(end)
            advance(sum(len(window.scored) for window in pool))
    finally:
        model.train(training)
    whole = sums.whole
    return Divergence(
        documents=sums.documents,
        tokens=sums.tokens,
        scored=whole.tokens,
        read=whole.tokens if reads is None else reads.tokens,
        lookups=0 if reads is None else reads.lookups,
        divergence=whole.interval(_DIVERGENCE),
        change=whole.interval(_CHANGE),
    )


class EditReads:
    """Counts the look-ups of edited rows in scored tokens, and the `tokens` that make them."""

    def __init__(self, finder: RowFinder, memory: Memory, edits: Mapping[int, RowValues]) -> None:
        self._finder = finder
        self._edited = [
            (place, edits[layer].rows.cpu())
            for layer, place in memory.places.items()
            if layer in edits
        ]
        self.tokens = self.lookups = 0

    def count(self, window: Window) -> bool:
        """Count those of a window; return whether anything in it reads an edited row."""
        rows = self._finder.find(torch.from_numpy(window.ids)[None])[0]
        reads = torch.zeros(rows.shape[1], dtype=torch.int64)
        for place, edited in self._edited:
            reads += torch.isin(rows[place], edited).sum(dim=-1)
        own = reads[window.first :] if window.start else reads
        self.tokens += int(torch.count_nonzero(own))
        self.lookups += int(own.sum())
        return bool(reads.any())


def _pools(
    windows: Iterable[Window | DocumentEnd], most: int
) -> Iterator[tuple[list[Window], list[DocumentEnd]]]:
    """Yield windows of about `most` tokens, and the documents that end with them."""
    pool: list[Window] = []
    ends: list[DocumentEnd] = []
    held = 0
    for item in windows:
        if isinstance(item, DocumentEnd):
            ends.append(item)
            continue
        pool.append(item)
        held += len(item.ids)
        if held >= most:
            yield pool, ends
            pool, ends, held = [], [], 0
    yield pool, ends


def _compare(
    model: nn.Module, batch: list[Window], changed: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Scored]:
    """Yield the windows of a batch with what the change does to each scored token. Raises
    InputError."""
    ids, mask = padded_batch(batch, model)
    given = {} if mask is None else {"attention_mask": mask.long()}
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False, **given).logits
        with changed():
            after = model(input_ids=ids, use_cache=False, **given).logits
    size = max(_CHUNK // before.shape[-1], 1)
    for line, window in enumerate(batch):
        part = slice(window.first - 1, len(window.ids) - 1)
        targets = ids[line, window.first : len(window.ids)].to(before.device)
        found = torch.cat(
            [
                _moved(*each)
                for each in zip(
                    *(torch.split(own[line, part], size) for own in (before, after)),
                    torch.split(targets, size),
                    strict=True,
                )
            ]
        )
        if not bool(torch.isfinite(found).all()):
            raise InputError(
                f"the model's predictions are not finite (document {window.document:,}, from token "
                f"{window.start:,} on)",
                "the weights hold NaN or overflow in this dtype: try --dtype float32",
            )
        moved, change = found.T.cpu().numpy()
        yield Scored(window=window, losses={_DIVERGENCE: moved, _CHANGE: change})


def _moved(before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """Return float32[n, 2]: KL(before || after) and the change of the loss, of logits [n, V].

    The sum over p (log p - log q) cancels where little moves. With both summing up to 1 it is that
    over p (e^d - 1 - d), d = log q - log p, in which no term is negative.
    """
    old, new = (F.log_softmax(logits.float(), dim=-1) for logits in (before, after))
    moved = torch.where(old == new, 0.0, new - old)  # tokens that no text may have are both -inf
    small = old.exp() * (torch.expm1(moved) - moved)
    large = new.exp() - old.exp() * (1.0 + moved)  # where e^d may overflow
    divergence = torch.where(moved > 1.0, large, small).sum(dim=-1)
    change = -moved.gather(1, targets[:, None])[:, 0]
    return torch.stack((divergence, change), dim=1)


def _unmoved(window: Window) -> Scored:
    """Return a window in which nothing changes."""
    none = torch.zeros(len(window.scored)).numpy()
    return Scored(window=window, losses={_DIVERGENCE: none, _CHANGE: none})

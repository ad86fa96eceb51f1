"""Keeps passages of the held-out text to show: its beginning, and where a loss changes most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.evaluate.result import Passage
from engram_cli.runtime.evaluation.scoring import Scored
from engram_cli.vocab.tokenizer import TokenizerFile

BEGINNING, HELPS, HURTS = "beginning", "helps", "hurts"
_SHOWN = 256  # tokens shown of the beginning of a document
_DOCUMENTS = 4  # documents whose beginning is shown
_LENGTH, _KEPT = 64, 3  # tokens of a passage where the loss changes, and how many are kept
_CONTEXT = 8  # tokens before a passage, from which the text of its first tokens follows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Excerpt:
    """Scored tokens of a document with their losses, and `change`: their summed difference.

    `ids` int64[k + n] begin with `lead` k tokens of context.
    """

    kind: str
    document: int
    name: str
    position: int
    lead: int
    ids: NDArray[np.int64]
    losses: dict[str, NDArray[np.float32]]
    change: float


class PassageKeeper:
    """Takes every scored window, and keeps a few passages of all, whatever the text's length."""

    def __init__(self, variant: str, than: str) -> None:
        """Compare the losses of `variant` with those of `than`."""
        self._variant, self._than = variant, than
        self.kept: list[Excerpt] = []

    def add(self, item: Scored) -> None:
        """Keep what is worth showing of a window."""
        change = item.losses[self._variant].astype(np.float64) - item.losses[self._than]
        if not len(change):
            return
        if item.window.document < _DOCUMENTS and item.window.start == 0:
            self.kept.append(_excerpt(item, BEGINNING, 0, min(_SHOWN, len(change)), change))
        length = min(_LENGTH, len(change))
        sums = np.convolve(change, np.ones(length), mode="valid")
        for kind, at, sign in ((HELPS, int(sums.argmin()), 1), (HURTS, int(sums.argmax()), -1)):
            least = [own.change for own in self.kept if own.kind == kind]
            if sums[at] * sign < (max(each * sign for each in least) if len(least) == _KEPT else 0):
                self.kept = best([*self.kept, _excerpt(item, kind, at, at + length, change)])


def best(excerpts: Iterable[Excerpt]) -> list[Excerpt]:
    """Return the beginnings of the first documents, and of the others those that change most."""
    every = sorted(excerpts, key=lambda own: (own.document, own.position))
    kept = [own for own in every if own.kind == BEGINNING]
    for kind in (HELPS, HURTS):
        own = [each for each in every if each.kind == kind]
        kept += sorted(own, key=lambda each: -abs(each.change))[:_KEPT]
    return kept


def as_passages(excerpts: Iterable[Excerpt], tokenizer: TokenizerFile | None) -> list[Passage]:
    """Return excerpts with the texts of their tokens; their ids where there is no tokenizer."""
    return [
        Passage(
            kind=own.kind,
            document=own.document,
            name=own.name,
            position=own.position,
            ids=tuple(own.ids[own.lead :].tolist()),
            pieces=tuple(_pieces(own.ids.tolist(), tokenizer)[own.lead :]),
            losses={
                name: tuple(round(float(loss), 4) for loss in losses)
                for name, losses in own.losses.items()
            },
        )
        for own in excerpts
    ]


def _excerpt(item: Scored, kind: str, begin: int, end: int, change: NDArray[np.float64]) -> Excerpt:
    """Return the scored tokens begin..end-1 of a window."""
    window = item.window
    first = window.first + begin
    lead = min(first, _CONTEXT)
    return Excerpt(
        kind=kind,
        document=window.document,
        name=window.name,
        position=window.start + first,
        lead=lead,
        ids=window.ids[first - lead : window.first + end].copy(),
        losses={name: losses[begin:end].copy() for name, losses in item.losses.items()},
        change=float(change[begin:end].sum()),
    )


def _pieces(ids: list[int], tokenizer: TokenizerFile | None) -> list[str]:
    """Return the text of each token where it stands; "" if it only begins a character.

    Each text is what the token adds to that of the few tokens before it, since decoders drop or add
    spaces at the beginning of a text.
    """
    if tokenizer is None:
        return [f"{token} " for token in ids]
    pieces, begin, shown = [], 0, 0
    for index in range(len(ids)):
        before = tokenizer.decode(ids[begin:shown])
        text = tokenizer.decode(ids[begin : index + 1])
        if text.endswith("\ufffd") and index + 1 < len(ids) and index - shown < 8:
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        begin, shown = shown, index + 1
    return pieces

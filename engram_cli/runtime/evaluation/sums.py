"""Sums the losses of tokens over a text: in all, by parts of it, by token, and over documents.

A loss is counted in whole units of 2^-24 nats, so that sums do not depend on the order, parts add
up to the whole exactly, and several processes get what one gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from engram_cli.runtime.evaluation.intervals import Interval, ratio_interval
from engram_cli.runtime.evaluation.scoring import Scored
from engram_cli.runtime.evaluation.windows import DocumentEnd, Window

UNIT = 2.0**-24  # nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A way to part all scored tokens: `labels` of the parts, and which part each token is of.

    `codes` gives int64[scored] of a window, each an index of `labels`.
    """

    name: str
    labels: tuple[str, ...]
    codes: Callable[[Window], NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLoss:
    """A part of the text: its `tokens`, the `documents` with any, and sums of losses in units."""

    tokens: int
    documents: int
    units: dict[str, int]
    products: NDArray[np.float64] = field(repr=False)

    def loss(self, variant: str) -> float:
        """Return the mean loss in nats per token; 0 without tokens."""
        return self.units[variant] * UNIT / self.tokens if self.tokens else 0.0

    def interval(self, variant: str, than: str | None = None) -> Interval:
        """Return the mean loss of a variant, or how much it is above that of `than`."""
        names = list(self.units)
        weight = np.zeros(len(self.products))
        weight[1 + names.index(variant)] += 1.0
        if than is not None:
            weight[1 + names.index(than)] -= 1.0
        units = self.units[variant] - (0 if than is None else self.units[than])
        # Of documents' sums as differences from the first variant, which cancel less.
        weight[1] = weight[1:].sum()
        return ratio_interval(
            units * UNIT,
            float(self.tokens),
            float(weight @ self.products @ weight),
            float(weight @ self.products[0]),
            float(self.products[0, 0]),
        )


def products_of(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the products of documents' sums [..., columns], float64[..., columns, columns].

    The columns are tokens, the units of the first variant, and of others. Those of others become
    differences from the first, which cancel less.
    """
    terms = sums.astype(np.float64)
    terms[..., 2:] -= terms[..., 1:2]
    terms[..., 1:] *= UNIT
    return np.asarray(terms[..., :, None] * terms[..., None, :])


def gathered(value: Any) -> list[Any]:
    """Return what every process of the default group gives here, in their order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


class LossSums:
    """Adds up the losses of scored windows, for the text as a whole and for each part of it.

    `variants` are the names of the losses, `vocabulary` how many token ids there are; with 0,
    losses are not summed by token. With `keeps`, the sums of each document stay in `kept`, by its
    number: its scored tokens, then its units of loss by variant.
    """

    def __init__(
        self,
        variants: Sequence[str],
        partitions: Sequence[Partition] = (),
        *,
        vocabulary: int = 0,
        keeps: bool = False,
    ) -> None:
        self.kept: dict[int, tuple[int, ...]] = {}
        self._keeps = keeps
        self.variants = tuple(variants)
        self.partitions = tuple(partitions)
        self._offsets = np.cumsum([1, *(len(each.labels) for each in partitions)])
        cells = int(self._offsets[-1])
        width = 1 + len(self.variants)
        self._totals = np.zeros((cells, width), dtype=np.int64)  # tokens, then units by variant
        self._documents = np.zeros(cells, dtype=np.int64)
        self._products = np.zeros((cells, width, width))
        self._ids = np.zeros((width, vocabulary), dtype=np.int64)
        self._read = np.zeros(4, dtype=np.int64)  # documents, tokens, bytes, documents with bytes
        self._open: dict[int, NDArray[np.int64]] = {}

    def add(self, item: Scored | DocumentEnd) -> None:
        """Add a window, or note that all windows of a document were added."""
        if isinstance(item, DocumentEnd):
            self._end(item)
            return
        window = item.window
        units = np.empty((len(self.variants), len(window.scored)), dtype=np.int64)
        for line, name in zip(units, self.variants, strict=True):
            line[:] = np.rint(item.losses[name].astype(np.float64) / UNIT)
        own = self._open.setdefault(window.document, np.zeros_like(self._totals))
        own[0, 0] += units.shape[1]
        own[0, 1:] += units.sum(axis=1)
        if self.partitions:
            pairs = zip(self.partitions, self._offsets[:-1], strict=True)
            cells = np.concatenate([each.codes(window) + begin for each, begin in pairs])
            own[1:, 0] += np.bincount(cells, minlength=len(own))[1:]
            for place, line in enumerate(units, 1):
                # Float64 holds these sums exactly: they are below 2^53.
                weights = np.tile(line, len(self.partitions))
                summed = np.bincount(cells, weights=weights, minlength=len(own))
                own[1:, place] += summed[1:].astype(np.int64)
        if self._ids.size:
            np.add.at(self._ids[0], window.scored, 1)
            for place, line in enumerate(units, 1):
                np.add.at(self._ids[place], window.scored, line)

    def _end(self, item: DocumentEnd) -> None:
        """Fold the sums of a document into those over documents."""
        self._read += (1, item.tokens, item.bytes or 0, item.bytes is not None)
        own = self._open.pop(item.document, None)
        if own is None:  # too short for a token to be scored
            return
        if self._keeps:
            self.kept[item.document] = tuple(own[0].tolist())
        self._totals += own
        self._documents += own[:, 0] > 0
        self._products += products_of(own)

    def reduce(self, device: torch.device) -> None:
        """Add up the sums of all processes of the default group; all get the same."""
        for array in (self._totals, self._documents, self._products, self._ids, self._read):
            tensor = torch.from_numpy(array).to(device)
            dist.all_reduce(tensor)
            array[...] = tensor.cpu().numpy()

    @property
    def documents(self) -> int:
        """How many documents were read, also those with nothing to score."""
        return int(self._read[0])

    @property
    def tokens(self) -> int:
        """How many tokens were read: the scored ones and the first of each document."""
        return int(self._read[1])

    @property
    def bytes(self) -> int | None:
        """The UTF-8 bytes of all documents' texts; None unless all are known."""
        return int(self._read[2]) if self._read[3] == self._read[0] else None

    @property
    def whole(self) -> PartLoss:
        """The text as a whole."""
        return self._part(0)

    def parts(self, name: str) -> dict[str, PartLoss]:
        """Return the parts of a partition by label; their tokens and units add up to `whole`'s."""
        index = next(i for i, each in enumerate(self.partitions) if each.name == name)
        begin = int(self._offsets[index])
        labels = self.partitions[index].labels
        return {label: self._part(begin + place) for place, label in enumerate(labels)}

    def by_token(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
        """Return how often each token id was scored, int64[vocabulary], and its sums in units."""
        return self._ids[0], dict(zip(self.variants, self._ids[1:], strict=True))

    def _part(self, cell: int) -> PartLoss:
        tokens, *units = self._totals[cell].tolist()
        return PartLoss(
            tokens=tokens,
            documents=int(self._documents[cell]),
            units=dict(zip(self.variants, units, strict=True)),
            products=self._products[cell],
        )

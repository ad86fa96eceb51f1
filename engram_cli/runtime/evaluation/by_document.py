"""The losses of a model over each of some documents, kept to be compared with those of another.

A model that was trained as a whole is not there any more when it is compared: its losses over the
same documents are, so that the difference is a paired one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engram_cli.runtime.evaluation.sums import LossSums, PartLoss, gathered, products_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLosses:
    """Documents by their `numbers`, ascending: their scored `tokens`, and sums of losses in units.

    `units` has a tuple for each of the `variants`. Raises ValueError for lengths that differ.
    """

    variants: tuple[str, ...]
    numbers: tuple[int, ...]
    tokens: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(self.numbers), len(self.tokens), *map(len, self.units)}
        if len(sizes) > 1 or len(self.units) != len(self.variants) or not self.variants:
            raise ValueError("losses of documents that do not have the same number of documents")

    @classmethod
    def of(cls, sums: LossSums, *, shared: bool = False) -> DocumentLosses:
        """Return what `sums`, which keep documents, have of each; `shared`: of all processes."""
        found = dict(sums.kept)
        if shared:
            found = {number: own for each in gathered(found) for number, own in each.items()}
        numbers = sorted(found)
        columns = [tuple(found[number][place] for number in numbers)
                   for place in range(1 + len(sums.variants))]  # fmt: skip
        return cls(
            variants=sums.variants,
            numbers=tuple(numbers),
            tokens=columns[0],
            units=tuple(columns[1:]),
        )

    def only(self, variant: str, name: str | None = None) -> DocumentLosses:
        """Return the losses of one variant, under another `name` if one is given."""
        units = self.units[self.variants.index(variant)]
        return replace(self, variants=(name or variant,), units=(units,))

    def joined(self, other: DocumentLosses) -> DocumentLosses:
        """Return both. Raises ValueError where these are losses over other documents."""
        if (self.numbers, self.tokens) != (other.numbers, other.tokens):
            raise ValueError("losses over other documents cannot be compared")
        both = self.variants + other.variants
        return replace(self, variants=both, units=self.units + other.units)

    def whole(self) -> PartLoss:
        """Return the losses over all documents, which compare variants."""
        sums = np.array((self.tokens, *self.units), dtype=np.int64).T
        return PartLoss(
            tokens=sum(self.tokens),
            documents=len(self.numbers),
            units=dict(zip(self.variants, map(sum, self.units), strict=True)),
            products=products_of(sums).sum(axis=0),
        )

"""What a scheme declares: how it makes layouts, and what its parameters mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from engram_cli.hashing.layout import HashLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A published way to hash n-grams.

    `layout` makes a HashLayout of its parameters, which have published defaults. `raw_ids`: token
    ids are hashed as they are, and `vocab_size` takes the place of a compressed vocabulary.
    `first_layer`: the number, 0 or 1, by which it names the first decoder layer.
    """

    layout: Callable[..., HashLayout]
    raw_ids: bool
    first_layer: int = 0

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters, with `pad_id` or `eos_id` where it has such a token."""
        return tuple(inspect.signature(self.layout).parameters)

    @property
    def needed(self) -> tuple[str, ...]:
        """The parameters without a default."""
        found = inspect.signature(self.layout).parameters.values()
        return tuple(p.name for p in found if p.default is p.empty)

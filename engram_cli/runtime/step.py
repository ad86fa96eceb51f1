"""The state of one forward call between its start and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engram_cli.runtime.state import State

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.reader import TierReader


@dataclass(slots=True, kw_only=True)
class Step:
    """One forward call under way: T new positions of B sequences after `state`'s.

    `older` int64[B, N-1] the compressed ids before `tokens`; `trains`: the call makes a graph.
    `rows` int64[L, B, T, C] are row numbers, None where one kernel looked up the `vectors`
    [L, B, T, C x dim] of all layers at once, which are None elsewhere. `keep` bool[B, T], False at
    padding; `age` int64[B, T], earlier positions of the same document; `reads`: vectors that are
    prefetched from other tiers; `done` the layers that ran, `conv` their convolutions' inputs.
    """

    tokens: Tensor
    older: Tensor
    seen: Tensor
    rows: Tensor | None
    vectors: Tensor | None
    keep: Tensor | None
    age: Tensor | None
    state: State
    cache: Any
    containers: dict[str, Any]
    trains: bool
    reads: TierReader | None = None
    done: set[int] = field(default_factory=set)
    conv: dict[int, Tensor] = field(default_factory=dict)

    @property
    def row_numbers(self) -> Tensor:
        """`rows` of a memory with rows in tiers, which one kernel cannot look up."""
        assert self.rows is not None
        return self.rows

    def module_input(self, place: int) -> Tensor:
        """What the module of the layer at index `place` takes: its row numbers, or its vectors.

        `MemoryModule.vectors` tells them apart by dtype: vectors are floats.
        """
        if self.reads is not None and place in self.reads:
            return self.reads.take(place)
        return (self.row_numbers if self.vectors is None else self.vectors)[place]

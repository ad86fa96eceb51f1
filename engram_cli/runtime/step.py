"""Holds what the memory needs during one forward call, and for layers that run a second time.

Activation checkpointing runs a layer again in the backward pass, after the forward call is over and
without calling the model. The memory then looks its inputs up (`Replays`) by the storage of the
hidden states that the layer gets, which checkpointing keeps from the first run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.state import State

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.reader import TierReader

Key = tuple[int, int, int, torch.Size]
_PLAIN = (Tensor, nn.Parameter)


@dataclass(slots=True, kw_only=True)
class Step:
    """One forward call under way: T new positions of B sequences after `state`'s.

    `older` int64[B, N-1] the compressed ids before `tokens`; `trains`: the call makes a graph.
    `rows` int64[L, B, T, C] are row numbers, None where one kernel looked up the `vectors`
    [L, B, T, C x dim] of all layers at once; these are None where each layer looks up its own.
    `keep` bool[B, T], False at padding; `age` int64[B, T], earlier positions of the same document;
    `reads`: vectors that are prefetched from other tiers; `done` the layers that ran, `conv` their
    convolutions' inputs.
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
        """Return what the module of the layer at index `place` takes: row numbers, or vectors.

        `MemoryModule.vectors` tells them apart by dtype: vectors are floats.
        """
        if self.reads is not None and place in self.reads:
            return self.reads.take(place)
        return (self.row_numbers if self.vectors is None else self.vectors)[place]


@dataclass(slots=True, kw_only=True)
class Replay:
    """The inputs of a layer's first run: row numbers or vectors, and `history`.

    `had_graph`: whether it made a graph, which the second run then only refills. `ambiguous`: the
    same hidden states were given with other token ids.
    """

    storage: StorageWeakRef
    version: int
    step: Step
    rows_or_vectors: Tensor
    history: Tensor | None
    had_graph: bool
    ambiguous: bool = False

    @property
    def expired(self) -> bool:
        """Return whether nobody holds the hidden states any more."""
        gone: bool = self.storage.expired()  # type: ignore[no-untyped-call]
        return gone


class Replays:
    """The runs that may be repeated, for as long as somebody holds their hidden states."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Key, Replay] = {}

    def keep(
        self,
        layer: int,
        hidden: Tensor,
        step: Step,
        rows_or_vectors: Tensor,
        history: Tensor | None,
    ) -> None:
        """Note a run inside a checkpoint of a call that `trains`; any other is not repeated."""
        if not step.trains or torch.compiler.is_compiling() or type(hidden) not in _PLAIN:
            return
        had_graph = torch.is_grad_enabled()
        if had_graph and not _saves_by_hooks():
            return
        replay = Replay(
            storage=StorageWeakRef(hidden.untyped_storage()),  # type: ignore[no-untyped-call]
            version=hidden._version,
            step=step,
            rows_or_vectors=rows_or_vectors,
            history=history,
            had_graph=had_graph,
        )
        with self._lock:
            self._kept = {key: old for key, old in self._kept.items() if not old.expired}
            earlier = self._kept.get(_key(layer, hidden))
            if earlier is not None and earlier.version == replay.version:
                same = torch.equal(earlier.step.tokens, step.tokens)
                replay.ambiguous = earlier.ambiguous or not same
            self._kept[_key(layer, hidden)] = replay

    def find(self, layer: int, hidden: Tensor) -> Replay:
        """Return the run that is repeated. Raises RuntimeAttachError when it is not known."""
        with self._lock:
            found = self._kept.get(_key(layer, hidden))
        if found is None or found.expired:
            raise RuntimeAttachError(
                f"layer {layer} ran outside a forward call of its model, so there are no token ids",
                "call the model itself; if activation checkpointing runs the layer again, let it "
                "keep the layer's input as it was (not offloaded to another device), or checkpoint "
                "the whole model",
            )
        if found.ambiguous:
            raise RuntimeAttachError(
                f"layer {layer} runs again for a backward pass, and got these hidden states with "
                "several token ids",
                "take the backward pass before the next forward with the same inputs_embeds",
            )
        return found


def _key(layer: int, hidden: Tensor) -> Key:
    storage = hidden.untyped_storage()
    return layer, storage._cdata, int(hidden.storage_offset()), hidden.shape


def _saves_by_hooks() -> bool:
    """Return whether hooks take what is saved for the backward pass, as in checkpointing."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None

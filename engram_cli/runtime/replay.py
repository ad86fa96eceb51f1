"""Layers that run again in the backward pass: activation checkpointing without the model's call.

By then the call is over. What its memory had for a layer is found again by the hidden states that
the layer got, which checkpointing keeps: their storage is the same, whatever tensor views it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from engram_cli.errors import RuntimeAttachError

if TYPE_CHECKING:
    from engram_cli.runtime.step import Step

Key = tuple[int, int, int, torch.Size]


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
        """Whether nobody holds the hidden states any more."""
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
        """The run that is repeated. Raises RuntimeAttachError when it is not known."""
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


_PLAIN = (Tensor, nn.Parameter)


def _key(layer: int, hidden: Tensor) -> Key:
    storage = hidden.untyped_storage()
    return layer, storage._cdata, int(hidden.storage_offset()), hidden.shape


def _saves_by_hooks() -> bool:
    """Whether hooks take what is saved for the backward pass, as checkpointing has them do."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None

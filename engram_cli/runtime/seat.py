"""Where a model carries a memory: a call is served by whatever sits there when it comes.

Wrappers take a memory's place in the model and hold copies of it: PEFT's `modules_to_save` trains
a copy for each adapter. They pass attributes on to the module in force, which says what it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from engram_cli.runtime.memory import Memory


def memory_in(module: Any) -> Memory | None:
    """The memory that a module is, or that the wrapper in its place uses now."""
    found = getattr(module, "in_force", None)
    return found if isinstance(found, Memory) else None


class Seat:
    """The place of a memory in a model, and the `handles` of its hooks.

    The model is held weakly: its layers hold the hooks, and those this.
    """

    def __init__(self, memory: Memory, model: nn.Module | None) -> None:
        self._memory = memory
        self._model = None if model is None else weakref.ref(model)
        self.handles: list[Any] = []

    @property
    def memory(self) -> Memory:
        """Who serves a call."""
        found = memory_in(getattr(self.model, self._memory.name, None))
        return self._memory if found is None else found

    @property
    def model(self) -> nn.Module | None:
        """The model that carries it; None without one, or when it is gone."""
        # Compilers trace this: torch 2.11 cannot ask whether a weak reference is true.
        return None if self._model is None else self._model()

    def __deepcopy__(self, memo: dict[int, Any]) -> Seat:
        """The seat in the copy of a model; of a module without its model the memory's own copy."""
        from copy import deepcopy

        copied = memo[id(self)] = Seat.__new__(Seat)
        copied.__setstate__((None, memo.get(id(self.model)), []))
        copied._memory = deepcopy(self._memory, memo)
        copied.handles = deepcopy(self.handles, memo)
        return copied

    def __getstate__(self) -> tuple[Any, ...]:
        return self._memory, self.model, self.handles

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._memory, model, self.handles = state
        self._model = None if model is None else weakref.ref(model)


class Seated:
    """A hook of the memory in a seat."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    @property
    def memory(self) -> Memory:
        """Who serves a call."""
        return self.seat.memory


def seats(model: nn.Module) -> Iterator[Seat]:
    """The seats whose hooks the modules of `model` have."""
    found = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Seated):
                found[id(owner.seat)] = owner.seat
    yield from found.values()

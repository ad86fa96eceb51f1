"""The hooks that bring a memory into a model's forward call, and the `Attachment` they share.

Modules on the way from the model to its layers tell the memory what they are given; each layer
that has a memory gets it added to its hidden states. A memory that is not active does nothing.

A call is served by whatever is in the memory's place in the model when it comes: wrappers take that
place and hold copies of the memory. PEFT's `modules_to_save` trains a copy for each adapter. They
pass attributes on to the module in force, which says what it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

from torch import nn

from engram_cli.runtime.decoder import Decoder
from engram_cli.runtime.forward_args import bind, parameter_names, read_call
from engram_cli.runtime.memory import Memory


def memory_in(module: Any) -> Memory | None:
    """Return the memory that a module is, or that the wrapper in its place uses now."""
    found = getattr(module, "in_force", None)
    return found if isinstance(found, Memory) else None


class Attachment:
    """The place of a memory in a model, and the `handles` of its hooks.

    The model is held weakly: its layers hold the hooks, and those this.
    """

    def __init__(self, memory: Memory, model: nn.Module | None) -> None:
        self.__setstate__((memory, model, []))

    @property
    def memory(self) -> Memory:
        """What serves a call."""
        model = self.model
        own: Memory = self._memory
        placed = None if model is None else model._modules.get(own.name)
        is_here = placed is own  # nearly always, and a decode step asks six times
        found = None if is_here else memory_in(placed)
        return own if found is None else found

    @property
    def model(self) -> nn.Module | None:
        """The model that carries it; None without one, or when it is gone."""
        # Compilers trace this: torch 2.11 cannot ask whether a weak reference is true.
        return None if self._model is None else self._model()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """Return the place in the copy of a model; without its model, that of the copied memory."""
        copied = memo[id(self)] = Attachment.__new__(Attachment)
        copied.__setstate__((None, memo.get(id(self.model)), []))
        copied._memory = deepcopy(self._memory, memo)
        copied.handles = deepcopy(self.handles, memo)
        return copied

    def __getstate__(self) -> tuple[Any, ...]:
        return self._memory, self.model, self.handles

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._memory, model, self.handles = state
        self._model = None if model is None else weakref.ref(model)


class AttachedHook:
    """A hook of the memory of an attachment, on a module with forward parameters called `names`."""

    def __init__(self, attachment: Attachment, module: nn.Module) -> None:
        self.attachment = attachment
        self.names = parameter_names(module)


class PathHooks(AttachedHook):
    """The hooks of one module on the way to the layers: they tell the memory what it is given."""

    def __init__(
        self, attachment: Attachment, module: nn.Module, depth: int, is_owner: bool
    ) -> None:
        super().__init__(attachment, module)
        self.depth, self.is_owner = depth, is_owner

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Note the arguments of a call, and take out the rows, which no model knows."""
        memory = self.attachment.memory
        given = memory.rows_argument in kwargs
        rows = kwargs.pop(memory.rows_argument) if given else None
        if memory.active:
            call = read_call(self.depth, self.names, args, kwargs)
            call.rows = rows
            memory.enter(call, self.is_owner)
        return (args, kwargs) if given else None

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note that the call ended, or failed and has no output."""
        memory = self.attachment.memory
        if memory.active:
            memory.leave(self.depth, self.names, self.is_owner, output)


class LayerHook(AttachedHook):
    """The hook of one decoder layer: it adds the memory before the layer's attention."""

    def __init__(self, attachment: Attachment, module: nn.Module, layer: int) -> None:
        super().__init__(attachment, module)
        self.layer = layer

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the layer's arguments, with the memory added to the hidden states."""
        memory = self.attachment.memory
        if not memory.active:
            return args, kwargs
        given = partial(bind, self.names, args, kwargs)
        if args:
            return (memory.add(self.layer, args[0], given), *args[1:]), kwargs
        name = self.names[0]
        return args, {**kwargs, name: memory.add(self.layer, kwargs[name], given)}


def hook(memory: Memory, model: nn.Module, decoder: Decoder) -> None:
    """Register all hooks of the `memory` of `model`; the handles of its attachment remove them."""
    attachment = Attachment(memory, model)
    for depth, module in enumerate(decoder.path):
        is_owner = module is decoder.owner
        if not is_owner and "input_ids" not in parameter_names(module):
            continue
        hooks = PathHooks(attachment, module, depth, is_owner)
        attachment.handles += [
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, with_kwargs=True, always_call=True),
        ]
    for layer in memory.spec.layers:
        module = decoder.layers[memory.spec.index(layer)]
        before = LayerHook(attachment, module, layer).before
        attachment.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))


def _attached_hooks(module: nn.Module) -> Iterator[AttachedHook]:
    """Yield the hooks of memories that run before a module."""
    for found in module._forward_pre_hooks.values():
        owner = getattr(found, "__self__", None)
        if isinstance(owner, AttachedHook):
            yield owner


def attachments(model: nn.Module) -> list[Attachment]:
    """Return the attachments whose hooks the modules of `model` have."""
    found = {
        id(owner.attachment): owner.attachment
        for module in model.modules()
        for owner in _attached_hooks(module)
    }
    return list(found.values())


def memories_at(layer: nn.Module) -> list[Memory]:
    """Return the memories whose hooks a decoder layer has."""
    return [
        owner.attachment.memory for owner in _attached_hooks(layer) if isinstance(owner, LayerHook)
    ]

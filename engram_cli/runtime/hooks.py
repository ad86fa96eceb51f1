"""The hooks that bring a memory into a model's forward call, and take it out again.

Modules on the way from the model to its layers tell the memory what they are given; each layer
that has a memory gets it added to its hidden states. A memory that is not active does nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from engram_cli.runtime.decoder import Decoder
from engram_cli.runtime.forward_args import bind, parameter_names, read_call
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.seat import Seat, Seated


class PathHooks(Seated):
    """The hooks of one module on the way to the layers: they tell the memory what it is given."""

    def __init__(self, seat: Seat, depth: int, module: nn.Module, is_owner: bool) -> None:
        super().__init__(seat)
        self.depth, self.is_owner = depth, is_owner
        self.names = parameter_names(module)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the arguments of a call."""
        if self.memory.active:
            self.memory.enter(read_call(self.depth, self.names, args, kwargs), self.is_owner)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """The call ended, or failed and has no output."""
        if self.memory.active:
            self.memory.leave(self.depth, self.names, self.is_owner, output)


class LayerHook(Seated):
    """The hook of one decoder layer: it adds the memory before the layer's attention."""

    def __init__(self, seat: Seat, layer: int, module: nn.Module) -> None:
        super().__init__(seat)
        self.layer = layer
        self.names = parameter_names(module)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments, with the memory added to the hidden states."""
        if not self.memory.active:
            return args, kwargs
        given = bind(self.names, args, kwargs)
        if args:
            return (self.memory.add(self.layer, args[0], given), *args[1:]), kwargs
        name = self.names[0]
        return args, {**kwargs, name: self.memory.add(self.layer, kwargs[name], given)}


def hook(memory: Memory, model: nn.Module, decoder: Decoder) -> None:
    """Register all hooks of the `memory` of `model`; the handles of its seat remove them."""
    seat = Seat(memory, model)
    for depth, module in enumerate(decoder.path):
        is_owner = module is decoder.owner
        if not is_owner and "input_ids" not in parameter_names(module):
            continue
        hooks = PathHooks(seat, depth, module, is_owner)
        seat.handles += [
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, with_kwargs=True, always_call=True),
        ]
    for layer in memory.spec.layers:
        module = decoder.layers[memory.spec.index(layer)]
        layer_hook = LayerHook(seat, layer, module)
        seat.handles.append(module.register_forward_pre_hook(layer_hook.before, with_kwargs=True))


def memories_at(layer: nn.Module) -> list[Memory]:
    """The memories whose hooks a decoder layer has."""
    owners = [getattr(found, "__self__", None) for found in layer._forward_pre_hooks.values()]
    return [owner.memory for owner in owners if isinstance(owner, LayerHook)]

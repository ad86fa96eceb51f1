"""attach and detach: a bundle's memory into a live model, and out again without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.runtime import loading
from engram_cli.runtime.capture import CACHE_NAMES, bind, first_given, parameter_names, read_call
from engram_cli.runtime.decoder import Decoder, find_decoder
from engram_cli.runtime.memory import Memory

NAME = "engram"


def attach(
    model: nn.Module,
    bundle_dir: str | Path,
    *,
    layers: Sequence[nn.Module] | None = None,
    rows_trainable: bool = True,
    sparse_gradients: bool = False,
    rows_device: torch.device | str | None = None,
    verify: bool = False,
) -> Memory:
    """Attach the bundle in a folder to `model`, which from then on carries it as `model.engram`.

    `layers` are the decoder layers, where they cannot be found. Dense weights take the dtype and
    device of their layer; rows keep the table's dtype and lie on `rows_device`, by default the
    layer's. `sparse_gradients` gives the rows sparse gradients, `rows_trainable=False` freezes
    them. `verify` checks every byte of the bundle. A fresh bundle changes no output. Raises
    RuntimeAttachError when the model is not one the bundle was made for, or carries one already.
    """
    bundle = read_bundle(bundle_dir, verify=verify)
    decoder = find_decoder(model, layers)
    _check(model, decoder, bundle)
    spec = bundle.spec
    modules = {}
    for layer in spec.layers:
        dtype, device = _home(decoder.layers[spec.index(layer)])
        modules[layer] = loading.module(
            bundle,
            layer,
            device=device,
            dtype=dtype,
            rows_device=device if rows_device is None else torch.device(rows_device),
            trainable=rows_trainable,
            sparse=sparse_gradients,
        )
    hashed = loading.hash_tensors(
        spec.layout,
        spec.layers,
        vocab_size=_vocabulary_size(model),
        device=_home(decoder.layers[0])[1],
    )
    memory = Memory(NAME, spec, hashed, modules)
    memory.train(model.training)
    _hook(memory, decoder)
    model.add_module(NAME, memory)
    return memory


def detach(model: nn.Module) -> None:
    """Take the memory out of `model`: hooks, modules and all, as if it had never been there.

    Raises RuntimeAttachError when the model carries none.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Memory)
    ]
    if not found:
        raise RuntimeAttachError("the model carries no memory", "attach one first")
    for parent, name, memory in found:
        for handle in memory.handles:
            handle.remove()
        memory.handles.clear()
        delattr(parent, name)


class _PathHooks:
    """The hooks of one module on the way to the layers: they tell the memory what it is given."""

    def __init__(self, memory: Memory, depth: int, module: nn.Module, is_owner: bool) -> None:
        self.memory, self.depth, self.is_owner = memory, depth, is_owner
        self.names = parameter_names(module)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the arguments of a call."""
        self.memory.enter(read_call(self.depth, self.names, args, kwargs), self.is_owner)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """The call ended, or failed and has no output."""
        self.memory.leave(self.depth, self.is_owner, output)


class _LayerHook:
    """The hook of one decoder layer: it adds the memory before the layer's attention."""

    def __init__(self, memory: Memory, layer: int, module: nn.Module) -> None:
        self.memory, self.layer = memory, layer
        self.names = parameter_names(module)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments, with the memory added to the hidden states."""
        cache = first_given(bind(self.names, args, kwargs), CACHE_NAMES)
        if args:
            return (self.memory.add(self.layer, args[0], cache), *args[1:]), kwargs
        name = self.names[0]
        return args, {**kwargs, name: self.memory.add(self.layer, kwargs[name], cache)}


def _hook(memory: Memory, decoder: Decoder) -> None:
    for depth, module in enumerate(decoder.path):
        is_owner = module is decoder.owner
        if not is_owner and "input_ids" not in parameter_names(module):
            continue
        hooks = _PathHooks(memory, depth, module, is_owner)
        memory.handles += [
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, with_kwargs=True, always_call=True),
        ]
    for layer in memory.spec.layers:
        module = decoder.layers[memory.spec.index(layer)]
        hook = _LayerHook(memory, layer, module)
        memory.handles.append(module.register_forward_pre_hook(hook.before, with_kwargs=True))


def _check(model: nn.Module, decoder: Decoder, bundle: Bundle) -> None:
    """Raises RuntimeAttachError unless the bundle fits the model, which carries none yet."""
    spec = bundle.spec
    for layer in decoder.layers:
        if any(_is_ours(hook) for hook in layer._forward_pre_hooks.values()):
            raise RuntimeAttachError("the model carries a memory already", "detach(model) first")
    if hasattr(model, NAME):
        raise RuntimeAttachError(
            f"{type(model).__name__} has an attribute '{NAME}' of its own",
            "attach to a module inside it",
        )
    if len(decoder.layers) != spec.num_layers:
        raise RuntimeAttachError(
            f"the bundle {bundle.folder} was made for {spec.num_layers} decoder layers, "
            f"{type(model).__name__} has {len(decoder.layers)}",
            "make a bundle for this model with engram attach",
        )
    if decoder.hidden_size not in (None, spec.hidden_size):
        raise RuntimeAttachError(
            f"the bundle {bundle.folder} was made for hidden size {spec.hidden_size}, "
            f"{type(model).__name__} has {decoder.hidden_size}",
            "make a bundle for this model with engram attach",
        )


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), _LayerHook)


def _home(layer: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of a layer: those of its first floating-point parameter."""
    for parameter in layer.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            if parameter.device.type == "meta":
                raise RuntimeAttachError(
                    "the model's weights are not loaded (they are on the meta device)",
                    "load the model first, without offloading the layers that get a memory",
                )
            return parameter.dtype, parameter.device
    raise RuntimeAttachError(
        f"a decoder layer ({type(layer).__name__}) has no floating-point parameter",
        "attach to a model whose layers have bfloat16, float16 or float32 weights",
    )


def _vocabulary_size(model: nn.Module) -> int:
    """How many token ids the model's input embedding takes, 0 when it does not say."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if callable(getter) else None
    except NotImplementedError:
        return 0
    weight = getattr(embedding, "weight", None)
    return len(weight) if isinstance(weight, Tensor) else 0

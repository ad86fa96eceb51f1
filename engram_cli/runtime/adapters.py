"""The weights of modules that PEFT has wrapped adapters around: merged, or without them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's weights by name, the very tensors, as if no adapter were around them.

    Raises RuntimeAttachError where an adapter is merged into them.
    """
    return _state(module, _base)


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, as if it had never had an adapter.

    Adapters in force are merged.
    """
    return _state(module, _merged)


def _state(module: nn.Module, inner: Callable[[Any], nn.Module]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    state |= dict(module.named_buffers(recurse=False))
    for name, child in module.named_children():
        for key, value in _state(inner(child), inner).items():
            state[f"{name}.{key}"] = value
    return state


def adapted(module: nn.Module) -> list[str]:
    """Return the names of the modules inside that an adapter is wrapped around."""
    found = [name for name, child in module.named_modules() if _is_adapter(child)]
    return [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]


def _is_adapter(module: nn.Module) -> bool:
    """Return whether a module is one of PEFT's layers, or its copies that replace a module."""
    return hasattr(module, "get_base_layer") or hasattr(module, "modules_to_save")


def _base(module: Any) -> nn.Module:
    """Return what an adapter is wrapped around. Raises RuntimeAttachError if it was merged."""
    found: nn.Module = module
    while _is_adapter(found):
        wrapper: Any = found
        if getattr(wrapper, "merged", False):
            raise RuntimeAttachError(
                f"an adapter is merged into a {type(module).__name__} of the memory",
                "model.unmerge_adapter() first, or model.merge_and_unload()",
            )
        is_copy = hasattr(wrapper, "modules_to_save")
        found = wrapper.original_module if is_copy else wrapper.get_base_layer()
    return found


def _merged(module: Any) -> nn.Module:
    """Return what computes the same as a module that may have an adapter."""
    found: nn.Module = module
    if not _is_adapter(module):
        return found
    off = module.disable_adapters or not module.active_adapters
    if hasattr(module, "modules_to_save"):
        name = "" if off else module.active_adapters[0]
        copies = module.modules_to_save
        found = dict(copies.items()).get(name, module.original_module)
    elif not (off or module.merged):
        copied = deepcopy(module)
        copied.merge()
        found = copied.get_base_layer()
    elif off and module.merged:
        copied = deepcopy(module)
        copied.unmerge()
        found = copied.get_base_layer()
    else:
        found = module.get_base_layer()
    return _merged(found)

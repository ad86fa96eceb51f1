"""A memory's weights where PEFT has put adapters around some of its modules.

What is saved is what the model computes: adapters that are in force are merged into the weights,
those that are switched off are left out. The live model keeps both apart.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by name, as if it had never had an adapter."""
    state: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    state |= dict(module.named_buffers(recurse=False))
    for name, child in module.named_children():
        state |= {f"{name}.{key}": value for key, value in merged_state(_merged(child)).items()}
    return state


def adapted(module: nn.Module) -> list[str]:
    """The names of the modules inside that an adapter is wrapped around."""
    found = [name for name, child in module.named_modules() if _is_adapter(child)]
    return [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]


def _is_adapter(module: nn.Module) -> bool:
    """Whether a module is one of PEFT's layers, or its copies to train in a module's place."""
    return hasattr(module, "get_base_layer") or hasattr(module, "modules_to_save")


def _merged(module: Any) -> nn.Module:
    """What computes the same as a module that may have an adapter."""
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

"""The memories that a model carries, by name."""

from __future__ import annotations

from torch import nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.hooks import memory_in
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import StoredRows
from engram_cli.runtime.sharding.trained.rows import ShardedRows

NAME = "engram"  # of the first memory, and of the attribute that holds it
_IGNORED = "_ddp_params_and_buffers_to_ignore"  # read by DDP from the module that it wraps


def plain_name(memory: Memory) -> str:
    """Return the name that a memory was attached by."""
    return memory.name.removeprefix(f"{NAME}_")


def memories(model: nn.Module) -> dict[str, Memory]:
    """Return the memories that `model` carries by name, wherever in it they were attached."""
    found: dict[str, Memory] = {}
    for module in model.modules():
        memory = memory_in(module)
        if memory is not None:  # a wrapper comes before the copies that it holds
            found.setdefault(plain_name(memory), memory)
    return found


def memory_of(model: nn.Module, name: str | None = None) -> Memory:
    """Return the memory called `name`; without a name the only one. Raises RuntimeAttachError."""
    found = memories(model)
    if not found:
        raise no_memory()
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        what = "which of its memories is meant" if name is None else f"no memory '{name}'"
        raise RuntimeAttachError(
            f"{type(model).__name__}: {what}", f"name one of {', '.join(found)}"
        )
    return found[name]


def no_memory() -> RuntimeAttachError:
    """Return the error for a model without a memory."""
    return RuntimeAttachError("the model carries no memory", "attach one first")


def leave_out_of_broadcasts(model: nn.Module) -> None:
    """Name the rows that DDP is to leave alone: those that `model` carries now, and no others.

    They are quantised rows, which never change, and rows that are distributed over processes. Names
    that others put there stay. DDP around a module that holds `model` does not see them: it sends
    quantised rows (`broadcast_buffers=False` keeps it from that), and distributed ones are refused
    unless this function is called with the module.
    """
    rows = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, StoredRows | ShardedRows)
        for names in (module.named_buffers(recurse=False), module.named_parameters(recurse=False))
        for name, _ in names
    }
    others = [name for name in getattr(model, _IGNORED, ()) if not _is_rows(name)]
    if rows or others:
        setattr(model, _IGNORED, [*others, *sorted(rows)])
    elif hasattr(model, _IGNORED):
        delattr(model, _IGNORED)


def _is_rows(name: str) -> bool:
    return ".multi_head_embedding.embedding." in name

"""The variants of a model that are compared: with and without its memories and its adapters.

A memory marked as `patched` is the one without that mark under patches, and takes its place in a
variant of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from engram_cli.errors import InputError
from engram_cli.runtime.carried import memories

BARE, MEMORY, PATCHED = "bare", "memory", "patched"
LORA, LORA_MEMORY = "lora", "lora_memory"
VARIANTS = (BARE, MEMORY, PATCHED, LORA, LORA_MEMORY)


def has_adapter(model: nn.Module) -> bool:
    """Return whether `model` is wrapped by PEFT, so that its adapters can be switched off."""
    return hasattr(model, "disable_adapter") and hasattr(model, "peft_config")


def variants_of(model: nn.Module) -> tuple[str, ...]:
    """Return the variants that `model` has: those with a memory if it carries one, and so on."""
    own, lora = memories(model).values(), has_adapter(model)
    memory, patched = bool(own), any(each.patched for each in own)
    present = {
        BARE: True,
        MEMORY: memory,
        PATCHED: patched,
        LORA: lora,
        LORA_MEMORY: memory and lora,
    }
    return tuple(name for name in VARIANTS if present[name])


def check_variants(model: nn.Module, names: tuple[str, ...]) -> None:
    """Raise InputError for a variant that `model` does not have, or for none."""
    known = variants_of(model)
    for name in names:
        if name not in known:
            raise InputError(
                f"this model has no variant '{name}'",
                f"known: {', '.join(known)}; attach a memory, or wrap the model with PEFT, first",
            )
    if not names:
        raise InputError("no variant of the model to evaluate", f"known: {', '.join(known)}")


@contextmanager
def as_variant(model: nn.Module, name: str) -> Iterator[None]:
    """Run `model` as one of its variants inside the block; afterwards all is as it was."""
    own = list(memories(model).values())
    active = [memory.active for memory in own]
    with ExitStack() as stack:
        if has_adapter(model) and name in (BARE, MEMORY, PATCHED):
            wrapped: Any = model
            stack.enter_context(wrapped.disable_adapter())
        try:
            for memory in own:
                memory.active = name in ((PATCHED,) if memory.patched else (MEMORY, LORA_MEMORY))
            yield
        finally:
            for memory, was in zip(own, active, strict=True):
                memory.active = was

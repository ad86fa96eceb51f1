"""Changes to methods of other libraries' classes, made when those libraries are there.

transformers and PEFT have no way to register what is saved next to a model. Their methods are
wrapped instead, once each and for good; a model without a memory takes the original alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn

_DONE = "_engram_wraps"  # the original, on a method that was wrapped


def wrap_method(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Make `owner.name(...)` call `around(original, self, ...)`, if `owner` defines that method.

    Of a class method, `self` is the class. A method that was wrapped already stays as it is.
    """
    found = owner.__dict__.get(name)
    is_class_method = isinstance(found, classmethod)
    original: Any = found.__func__ if isinstance(found, classmethod) else found
    if original is None or hasattr(original, _DONE):
        return

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(method, _DONE, original)
    setattr(owner, name, classmethod(method) if is_class_method else method)


def when_imported(module: str, change: Callable[[ModuleType], None]) -> None:
    """Call `change` with a module: now if it is imported, else as soon as it is."""
    if module in sys.modules:
        change(sys.modules[module])
        return
    watcher = next((finder for finder in sys.meta_path if isinstance(finder, _Watcher)), None)
    if watcher is None:
        watcher = _Watcher()
        sys.meta_path.insert(0, watcher)
    changes = watcher.changes.setdefault(module, [])
    if change not in changes:
        changes.append(change)


class _Watcher(MetaPathFinder):
    """Lets the other finders import a module, and changes it afterwards."""

    def __init__(self) -> None:
        self.changes: dict[str, list[Callable[[ModuleType], None]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, None for what nobody waits for."""
        changes = self.changes.get(fullname)
        if changes is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for change in changes:
                    change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch_saving(model: nn.Module) -> None:
    """Make the ways of saving `model`, and models around it, save the memories that it carries."""
    for module in model.modules():
        for owner in type(module).__mro__:
            wrap_method(owner, "save_pretrained", _later("save_model"))
    when_imported("peft.peft_model", _watch_peft)
    when_imported("transformers.trainer", _watch_trainer)


def _watch_peft(peft: ModuleType) -> None:
    wrap_method(peft.PeftModel, "save_pretrained", _later("save_model"))


def _watch_trainer(trainer: ModuleType) -> None:
    wrap_method(trainer.Trainer, "_load_from_checkpoint", _later("load_checkpoint"))
    wrap_method(trainer.Trainer, "_load_best_model", _later("load_best"))
    wrap_method(trainer.Trainer, "_push_from_checkpoint", _later("push_checkpoint"))


def _later(name: str) -> Callable[..., Any]:
    """Return a function of `pretrained`, which is imported when it is called."""

    def around(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module("engram_cli.runtime.pretrained"), name)(*args, **kwargs)

    return around

"""Methods of other libraries are wrapped when they are imported, once, and fall through."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engram_cli.runtime.library_hooks import when_imported, wrap_method


def around(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    return ["around", original(self, *args, **kwargs)]


class Saver:
    """Two methods to wrap."""

    def save(self, folder: str, *, name: str = "a") -> Any:
        """Save it."""
        return [folder, name]

    @classmethod
    def make(cls, name: str) -> Any:
        return [cls.__name__, name]


class Heir(Saver):
    """What has the methods of another class."""


def test_a_method_is_wrapped_once_and_keeps_its_name_and_text() -> None:
    for _ in range(2):
        for owner in (Saver, Heir):
            wrap_method(owner, "save", around)
            wrap_method(owner, "make", around)
    assert Heir().save("x", name="b") == ["around", ["x", "b"]]
    assert Heir.make("y") == ["around", ["Heir", "y"]]
    assert (Saver.save.__name__, Saver.save.__doc__) == ("save", "Save it.")
    assert "save" not in vars(Heir)


def test_a_module_is_changed_as_soon_as_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_library.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)

    def one(module: ModuleType) -> None:
        module.VALUE += 1

    def two(module: ModuleType) -> None:
        module.VALUE *= 10

    when_imported("late_library", one)
    when_imported("late_library", two)
    when_imported("late_library", one)
    assert len(sys.meta_path) - len(finders) in (0, 1)
    assert importlib.import_module("late_library").VALUE == 20
    assert importlib.import_module("late_library").VALUE == 20
    when_imported("late_library", one)  # it is there already
    assert sys.modules["late_library"].VALUE == 21
    monkeypatch.delitem(sys.modules, "late_library")
    assert importlib.util.find_spec("no_such_library") is None
